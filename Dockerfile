# A base image with CUDA's libraries serves GPUs, a plain Python image serves CPUs:
#   docker build --build-arg BASE_IMAGE=python:3.11-slim -t tdpipe .
ARG BASE_IMAGE=python:3.11-slim
FROM ${BASE_IMAGE}

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# The CPU kernels are compiled at the first start (tdpipe serves without a compiler too, more slowly).
RUN command -v c++ \
    || { apt-get update && apt-get install -y --no-install-recommends g++ \
        && rm -rf /var/lib/apt/lists/*; }

WORKDIR /opt/tdpipe
COPY pyproject.toml constraints.txt README.md LICENSE tdpipe.py ./
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
RUN python3 -m venv --system-site-packages /opt/venv \
    && /opt/venv/bin/pip install -c constraints.txt .

# root owns the code: the daemon's user can write only into its home. The folders are made here so
# that a volume mounted on one belongs to that user. The user is a number, so that Kubernetes can
# see that it is not root (runAsNonRoot).
RUN useradd --create-home --uid 10001 tdpipe \
    && install -d -m 700 -o tdpipe -g tdpipe \
        /home/tdpipe/.cache/huggingface /home/tdpipe/.local/share/tdpipe \
    && chown -R tdpipe:tdpipe /home/tdpipe
USER 10001:10001
WORKDIR /home/tdpipe
ENV PATH=/opt/venv/bin:${PATH} HOME=/home/tdpipe PYTHONDONTWRITEBYTECODE=1

EXPOSE 8000
# Docker restarts nothing by itself, but its orchestrators end what is unhealthy: /live fails only when
# the daemon has given up, and not while it loads the model or restarts a process.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/live', timeout=4)"]
# A drain takes up to --shutdown-timeout: give `docker stop` more than its 10 s.
STOPSIGNAL SIGTERM
ENTRYPOINT ["tdpipe", "serve"]
CMD ["--host", "0.0.0.0"]
