# The project with its packages, for a CPU or for NVIDIA GPUs:
#   docker build --tag golf .
#   docker build --tag golf-cuda --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 .
# Then docs/running.md, "In a container".
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

# python3 and its venv are for bases without Python; where there is one, PATH names it first.
# g++ is what torch.compile needs, bubblewrap what the referee's sandbox is made of.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        bubblewrap ca-certificates g++ git make python3 python3-dev python3-venv xz-utils \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /golf

# The packages alone first: a change of the code does not install them again.
COPY requirements.txt Makefile ./
RUN make setup && rm -rf /root/.cache

COPY . .

CMD ["make", "record"]
