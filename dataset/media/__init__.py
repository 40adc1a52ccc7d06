"""Images and videos: decodes them to uint8 tensors, augments them, and makes the views that training and evaluation see."""
