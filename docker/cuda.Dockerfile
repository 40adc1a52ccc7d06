# torch's wheels contain CUDA, so the machine only needs NVIDIA's driver and container toolkit. The compiler is for torch.compile.
# docker build -f docker/cuda.Dockerfile -t x2vlm .
# docker run --rm --gpus all --shm-size 8g -v "$PWD/data:/x2vlm/data" -v "$PWD/runs:/x2vlm/runs" x2vlm --config configs/demo/pretrain.yaml
FROM python:3.13-slim
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /x2vlm
COPY requirements.txt .
RUN python -m pip install --no-cache-dir -r requirements.txt
COPY . .
RUN python -m pip install --no-cache-dir --no-deps --editable . \
    && useradd --create-home --uid 1000 user && mkdir -p data runs && chown user data runs
USER 1000
ENTRYPOINT ["python", "run.py"]
