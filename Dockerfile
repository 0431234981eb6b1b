# The service alone: no torch, no training code.
#   docker build -t asfd .                                for CPUs
#   docker build --target gpu -t asfd:gpu .               for NVIDIA GPUs: ONNX Runtime CUDA and TensorRT's lean runtime
#   docker build --target gpu-build -t asfd:gpu-build .   the same and TensorRT's builder, which makes engines
# Only plain Dockerfile syntax, so that builders older than BuildKit work too; those build every stage up to the target,
# so for CPUs pass them --target service. Versions stand in constraints.txt.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# --- what is to be installed from PyPI, at the versions of constraints.txt
FROM ${PYTHON_IMAGE} AS requirements
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# Hosts that reach PyPI through a mirror pass it here: docker build --build-arg PIP_INDEX_URL=...
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
WORKDIR /build
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
      > requirements.txt

FROM requirements AS dependencies
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
RUN python -m venv /opt/venv \
 && /opt/venv/bin/pip install --only-binary :all: --constraint constraints.txt --requirement requirements.txt \
 && /opt/venv/bin/pip uninstall --yes pip setuptools \
 && find /opt/venv -type d -name tests -prune -exec rm -rf {} + \
 && /opt/venv/bin/python -m compileall -q /opt/venv/lib

# --- all that the images have in common but Python's packages and the code
FROM ${PYTHON_IMAGE} AS base
LABEL org.opencontainers.image.title="asfd" \
      org.opencontainers.image.description="A face-detection service that keeps its latency promise" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 asfd \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin asfd \
 && install -d -o 10001 -g 10001 /var/cache/asfd
WORKDIR /app
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ASFD_REPOSITORY=/app/models \
    ASFD_CACHE_DIR=/var/cache/asfd \
    ORT_DISABLE_TELEMETRY=1 \
    HOST=0.0.0.0 \
    PORT=8000
EXPOSE 8000
# Latency profiles and engines live here, so that a second start is fast. The root file system may be read-only.
VOLUME /var/cache/asfd
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=90s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['PORT'] + '/health/ready', timeout=2)"]
ENTRYPOINT ["python", "-m", "service"]
CMD ["serve"]

# --- the image for CPUs
FROM base AS service
COPY --from=dependencies /opt/venv /opt/venv
COPY LICENSE ./
COPY models models
COPY service service
USER 10001:10001

# --- NVIDIA GPUs: onnxruntime-gpu in place of onnxruntime, and the CUDA libraries that its own metadata asks for, as
# wheels: CUDA's images hold more than is needed, in versions of their own. For one of those put Python 3.11 into it and
# pass --build-arg PYTHON_IMAGE=THAT --build-arg CUDA_LIBRARIES=none.
FROM requirements AS gpu-dependencies
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
# wheels, or none: the image has CUDA and cuDNN already.
ARG CUDA_LIBRARIES=wheels
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['gpu'], sep='\n')" \
      > requirements-gpu.txt \
 && sed -i '/^onnxruntime[^-a-z]/d' requirements.txt \
 && case "$CUDA_LIBRARIES" in \
      wheels) ;; \
      none) sed -i 's/\[cuda,cudnn\]//' requirements-gpu.txt ;; \
      *) echo "CUDA_LIBRARIES is wheels or none, not '$CUDA_LIBRARIES'" >&2; exit 1 ;; \
    esac \
 && python -m venv /opt/venv \
 && /opt/venv/bin/pip install --only-binary :all: --constraint constraints.txt \
      --requirement requirements.txt --requirement requirements-gpu.txt \
 && /opt/venv/bin/pip uninstall --yes pip setuptools \
 && find /opt/venv -type d -name tests -prune -exec rm -rf {} + \
 && /opt/venv/bin/python -m compileall -q /opt/venv/lib

# TensorRT lies in a folder of its own, so that both GPU images share the layers before it.
# The lean runtime is on PyPI (its meta package as source, which has nothing to compile). It runs version-compatible plans.
FROM requirements AS tensorrt-lean
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
# Empty: the version of constraints.txt.
ARG TENSORRT_VERSION
RUN version="${TENSORRT_VERSION:-$(sed -n 's/^tensorrt-lean-cu13==//p' constraints.txt)}" \
 && pip install --no-deps --target /opt/tensorrt --only-binary tensorrt-lean-cu13-libs,tensorrt-lean-cu13-bindings \
      "tensorrt-lean-cu13==$version" "tensorrt-lean-cu13-libs==$version" "tensorrt-lean-cu13-bindings==$version"

# --- runs engines that were built elsewhere; without one ONNX Runtime CUDA, without a GPU the CPU. The host needs
# NVIDIA's driver (580 or newer, for CUDA 13) and container toolkit. Neither GPU image has met a GPU yet.
FROM base AS gpu
COPY --from=gpu-dependencies /opt/venv /opt/venv
COPY --from=tensorrt-lean /opt/tensorrt /opt/tensorrt
# What the toolkit puts in of the driver: CUDA, and nvidia-smi. Which GPUs, the one who runs it says (--gpus).
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONPATH=/opt/tensorrt
# First runs and engines take long.
HEALTHCHECK --interval=5s --timeout=3s --start-period=30m --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['PORT'] + '/health/ready', timeout=2)"]
COPY LICENSE ./
COPY models models
COPY service service
USER 10001:10001

# --- the builder's libraries (some GB) come from NVIDIA's index: PyPI's package of that name only points there.
FROM requirements AS tensorrt-full
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG TENSORRT_VERSION
ARG TENSORRT_INDEX_URL=https://pypi.nvidia.com
RUN version="${TENSORRT_VERSION:-$(sed -n 's/^tensorrt-cu13==//p' constraints.txt)}" \
 && PIP_EXTRA_INDEX_URL="$PIP_EXTRA_INDEX_URL $TENSORRT_INDEX_URL" \
    pip install --no-deps --target /opt/tensorrt --only-binary tensorrt-cu13-libs,tensorrt-cu13-bindings \
      "tensorrt-cu13==$version" "tensorrt-cu13-libs==$version" "tensorrt-cu13-bindings==$version"

# --- builds engines too: before the service starts (`make engines`), or as it starts where it finds none that fits
FROM gpu AS gpu-build
COPY --from=tensorrt-full /opt/tensorrt /opt/tensorrt

# --- what a plain `docker build .` makes
FROM service
