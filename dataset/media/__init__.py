"""Images and videos: encoded bytes to uint8 tensors, augmentation, and the views that training and evaluation see."""
