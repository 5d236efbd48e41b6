# Two images: for CPUs (the default), and for NVIDIA GPUs.
#
#   docker build -t tdpipe .
#   docker build -t tdpipe:cuda --build-arg VARIANT=cuda .
#
# docs/deployment.md describes the arguments, and builds without the internet.

# Any image with Python 3.11 or later and its venv module. Torch in it is used if its version fits.
ARG BASE_IMAGE=python:3.11-slim

# Replaced by a folder with a wheel of torch: --build-context wheels=FOLDER.
FROM scratch AS wheels

FROM ${BASE_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# The image's environment has no pip of its own: this one fills it.
RUN python3 -m venv /opt/pip \
    && /opt/pip/bin/pip install "pip>=23" \
    && python3 -m venv --without-pip --system-site-packages /opt/venv
WORKDIR /src
COPY pyproject.toml constraints.txt ./

# Torch comes first and alone, so that the other packages do not bring PyPI's, which has 5 GB of CUDA.
# For CUDA, PyPI's is right, and this step is left out unless TORCH_INDEX or a wheel is given.
ARG VARIANT=cpu
ARG TORCH_INDEX=
RUN --mount=type=bind,from=wheels,target=/wheels \
    case "$VARIANT" in cpu|cuda) ;; *) echo "VARIANT is cpu or cuda, not $VARIANT"; exit 1 ;; esac; \
    index="$TORCH_INDEX"; \
    if [ -z "$index" ] && [ "$VARIANT" = cpu ]; then index=https://download.pytorch.org/whl/cpu; fi; \
    set --; \
    if [ -n "$(find /wheels -name 'torch-*.whl')" ]; then set -- --no-index --find-links /wheels; \
    elif [ -n "$index" ]; then set -- --index-url "$index"; fi; \
    if [ $# -gt 0 ]; then \
        /opt/pip/bin/pip --python /opt/venv/bin/python install --no-deps "$@" \
            "$(grep '^torch==' constraints.txt)"; \
    fi

# The dependencies alone, so that a change of the code does not repeat them. EXTRAS: of pyproject.toml.
# Of torch, what only its own tests and C++ extensions need is removed, 0.2 GB.
ARG EXTRAS=
COPY deploy/docker/dependencies.py ./
RUN python3 dependencies.py pyproject.toml "$EXTRAS" > requirements.txt \
    && /opt/pip/bin/pip --python /opt/venv/bin/python install -c constraints.txt -r requirements.txt \
    && torch=$(echo /opt/venv/lib/python3*/site-packages/torch) \
    && rm -rf "$torch/test" "$torch/include" "$torch"/bin/test_* "$torch"/bin/*Test "$torch"/bin/protoc*

FROM build AS wheel
COPY README.md LICENSE tdpipe.py ./
COPY bench bench
COPY benchmarks benchmarks
COPY client client
COPY configs configs
COPY daemon daemon
COPY demo demo
COPY doctor doctor
COPY engine engine
COPY predictor predictor
COPY router router
COPY server server
COPY simulator simulator
COPY wire wire
COPY workers workers
RUN /opt/pip/bin/pip wheel --no-deps --wheel-dir /dist .

FROM ${BASE_IMAGE}
ARG VARIANT=cpu
# g++ compiles the kernels for this machine's CPU at the first start (tdpipe serves without it too,
# more slowly); on GPUs, Triton needs it, and Python's headers. tini reaps what killed processes leave.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ tini \
    && if [ "$VARIANT" = cuda ] \
        && ! python3 -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")'; \
        then apt-get install -y --no-install-recommends python3-dev; fi \
    && apt-get clean && rm -rf /var/lib/apt/lists/*

# root owns the code: the daemon's user can write only into its home. The folders are made here so
# that a volume mounted on one belongs to that user. The user is a number, so that Kubernetes can
# see that it is not root (runAsNonRoot).
RUN useradd --create-home --uid 10001 tdpipe \
    && install -d -m 700 -o tdpipe -g tdpipe \
        /home/tdpipe/.cache/huggingface /home/tdpipe/.local/share/tdpipe \
    && chown -R tdpipe:tdpipe /home/tdpipe

COPY --from=build /opt/venv /opt/venv
# Copied, not mounted: podman 4.3 looks for changes only in what is copied, and would go on using the
# installed code of an earlier build.
COPY --from=wheel /dist /tmp/dist
RUN --mount=type=bind,from=build,source=/opt/pip,target=/opt/pip \
    /opt/pip/bin/pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --no-index /tmp/dist/*.whl \
    && rm -r /tmp/dist
COPY --chmod=755 deploy/docker/entrypoint.sh /usr/local/bin/tdpipe-entrypoint

USER 10001:10001
WORKDIR /home/tdpipe
# Inside a container, 127.0.0.1 is reached by nobody; and a fixed runtime folder is where the health
# check finds how to reach the process. What is compiled is kept with the data.
ENV PATH=/opt/venv/bin:${PATH} \
    HOME=/home/tdpipe \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TDPIPE_HOST=0.0.0.0 \
    TDPIPE_RUNTIME_DIR=/tmp/tdpipe \
    TDPIPE_ROUTE_HOST=0.0.0.0 \
    TDPIPE_ROUTE_RUNTIME_DIR=/tmp/tdpipe \
    TRITON_CACHE_DIR=/home/tdpipe/.local/share/tdpipe/triton \
    CUDA_CACHE_PATH=/home/tdpipe/.local/share/tdpipe/cuda

ARG VERSION=0.1.0
ARG REVISION=
ARG CREATED=
LABEL org.opencontainers.image.title="tdpipe" \
    org.opencontainers.image.description="OpenAI-compatible LLM serving with temporally-disaggregated pipeline parallelism" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}-${VARIANT}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.created="${CREATED}"

EXPOSE 8000
# Docker restarts nothing by itself, but its orchestrators end what is unhealthy: /live fails only when
# the daemon has given up, and not while it loads the model or restarts a process. The start period is
# long, because nothing listens while a GGUF file is converted; it ends with the first success.
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s --retries=3 CMD ["tdpipe", "healthcheck"]
# A drain takes up to --shutdown-timeout: give `docker stop` more than its 10 s.
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--", "tdpipe-entrypoint"]
