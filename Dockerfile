# The service alone: no torch, no training code. CPU by default:   docker build -t asfd .
# For NVIDIA GPUs (see the note at that stage):                    docker build --target gpu -t asfd:gpu .
# Only plain Dockerfile syntax, so that builders older than BuildKit work too.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# --- what the service needs from PyPI, at the versions of constraints.txt
FROM ${PYTHON_IMAGE} AS dependencies
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# Hosts that reach PyPI through a mirror pass it here: docker build --build-arg PIP_INDEX_URL=...
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
WORKDIR /build
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
      > requirements.txt
RUN python -m venv /opt/venv \
 && /opt/venv/bin/pip install --only-binary :all: --constraint constraints.txt --requirement requirements.txt \
 && /opt/venv/bin/pip uninstall --yes pip setuptools \
 && find /opt/venv -type d -name tests -prune -exec rm -rf {} + \
 && /opt/venv/bin/python -m compileall -q /opt/venv/lib

# --- the image that is run
FROM ${PYTHON_IMAGE} AS service
LABEL org.opencontainers.image.title="asfd" \
      org.opencontainers.image.description="A face-detection service that keeps its latency promise" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 asfd \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin asfd \
 && install -d -o 10001 -g 10001 /var/cache/asfd
COPY --from=dependencies /opt/venv /opt/venv
WORKDIR /app
COPY LICENSE ./
COPY models models
COPY service service
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ASFD_REPOSITORY=/app/models \
    ASFD_CACHE_DIR=/var/cache/asfd \
    HOST=0.0.0.0 \
    PORT=8000
USER 10001:10001
EXPOSE 8000
# Latency profiles live here, so that a second start is fast. The root file system may be read-only.
VOLUME /var/cache/asfd
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=90s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['PORT'] + '/health/ready', timeout=2)"]
ENTRYPOINT ["python", "-m", "service"]
CMD ["serve"]

# --- NVIDIA GPUs: the same service on onnxruntime-gpu with the CUDA libraries from PyPI (several GB).
# Nobody has run this stage in this project yet: treat it as a starting point. The host needs the NVIDIA driver and
# its container toolkit.
FROM dependencies AS gpu-dependencies
RUN sed -i 's/^onnxruntime>=/onnxruntime-gpu[cuda,cudnn]>=/' requirements.txt \
 && grep -v '^onnxruntime==' constraints.txt > constraints-gpu.txt \
 && python -m venv --clear /opt/venv \
 && /opt/venv/bin/pip install --only-binary :all: --constraint constraints-gpu.txt --requirement requirements.txt

FROM service AS gpu
COPY --from=gpu-dependencies /opt/venv /opt/venv

# --- what a plain `docker build .` makes
FROM service
