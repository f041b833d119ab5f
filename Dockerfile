# Two images from one file:
#   docker build --target gateway -t disagfusion-gateway .    HTTP and scheduling, without torch
#   docker build --target stage   -t disagfusion-stage .      one stage server, without a web framework
#
# The stage image takes torch from PyPI, which on Linux x86-64 means CUDA. For another build of torch (CPU only, ROCm),
# pass the index that pytorch.org/get-started/locally names for it: --build-arg TORCH_INDEX=https://…

ARG PYTHON=3.11
# Any Debian with Python and venv; make images passes one that debootstrap has made.
ARG BASE=python:${PYTHON}-slim

FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/venv/bin:$PATH
RUN python -m venv /opt/venv
WORKDIR /src
COPY pyproject.toml constraints.txt LICENSE ./
# The build reads README.md; with an empty one, a better text does not install torch again.
RUN touch README.md

# Dependencies first: without sources pip installs an empty distribution and all that it needs.
FROM build AS gateway-build
RUN pip install --constraint constraints.txt '.[gateway,postgres,redis]'
COPY . .
RUN pip install --no-deps --force-reinstall .

FROM build AS stage-build
ARG TORCH_INDEX=""
RUN if [ -n "$TORCH_INDEX" ]; then pip install --constraint constraints.txt --index-url "$TORCH_INDEX" torch; fi
RUN pip install --constraint constraints.txt '.[stage]'
COPY . .
RUN pip install --no-deps --force-reinstall .

FROM ${BASE} AS runtime
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PATH=/opt/venv/bin:$PATH
RUN useradd --uid 10001 --create-home disagfusion
WORKDIR /home/disagfusion

FROM runtime AS stage
# torch.compile (--compile) calls a C++ compiler.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
# Weights from the hub; mount a volume here to download them once.
ENV HF_HOME=/cache
RUN install --directory --owner=disagfusion --group=disagfusion /cache
COPY --from=stage-build /opt/venv /opt/venv
USER 10001
EXPOSE 5601
# No health check: the gateway counts heartbeats, and a server that cannot work exits.
ENTRYPOINT ["python", "-m", "stage_server"]
CMD ["--help"]

FROM runtime AS gateway
# Files and pictures behind urls; mount a volume here to keep them.
ENV DISAGFUSION_STATE_DIR=/state
RUN install --directory --mode=0700 --owner=disagfusion --group=disagfusion /state
COPY --from=gateway-build /opt/venv /opt/venv
USER 10001
EXPOSE 8000 5600 5601
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
ENTRYPOINT ["python", "-m", "gateway"]
# Beyond loopback the gateway starts only with DISAGFUSION_API_KEYS, or with DISAGFUSION_ALLOW_ANONYMOUS=true; and with
# DISAGFUSION_CURVE_… keys for its other sockets, or with DISAGFUSION_ALLOW_PLAINTEXT=true.
CMD ["--host", "0.0.0.0", "--port", "8000", "--control-bind", "tcp://0.0.0.0:5600"]
