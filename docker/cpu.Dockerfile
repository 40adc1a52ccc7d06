# docker build -f docker/cpu.Dockerfile -t x2vlm:cpu .
# docker run --rm --shm-size 2g -v "$PWD/data:/x2vlm/data" -v "$PWD/runs:/x2vlm/runs" x2vlm:cpu doctor
FROM python:3.13-slim
WORKDIR /x2vlm
COPY requirements.txt .
RUN python -m pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "torch>=2.12,<3" "torchvision>=0.27,<1" \
    && python -m pip install --no-cache-dir -r requirements.txt
COPY . .
RUN python -m pip install --no-cache-dir --no-deps --editable . \
    && useradd --create-home --uid 1000 user && mkdir -p data runs && chown user data runs
USER 1000
ENTRYPOINT ["python", "run.py"]
