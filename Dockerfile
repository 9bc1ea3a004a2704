# The recipe with all that it needs; how to build and run it: docs/image.md.
#
#   BASE -> system -> environment    compilers stay in this one
#              '----> the image: system, the environment's .venv, code
#
# A change of code makes the last layer anew; one of the locked lists or of Horovod's patch all but the system.
ARG VARIANT=gpu
# CUDA 12.9 is the family of requirements/gpu.txt.
ARG GPU_BASE=docker.io/nvidia/cuda:12.9.1-devel-ubuntu24.04
ARG CPU_BASE=docker.io/library/ubuntu:24.04

FROM ${GPU_BASE} AS gpu
FROM ${CPU_BASE} AS cpu

FROM ${VARIANT} AS system
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates openssh-client python3 \
    && rm -rf /var/lib/apt/lists/*
# Whoever runs the image (-u UID:GID) may write to /outbrain and /results; scripts/entrypoint.sh gives them a home.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /recipe recipe \
    && install -d -m 700 -o recipe -g recipe /recipe && install -d -m 1777 /outbrain /results
WORKDIR /wd

FROM system AS environment
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends build-essential patch python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
ENV UV_LINK_MODE=copy
COPY requirements/*.txt requirements/*.patch requirements/
COPY scripts/setup.sh scripts/build_horovod.sh scripts/
ARG VARIANT
# TensorFlow's headers, 300 MB, have then served.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca --mount=type=cache,target=/root/.cache \
    bash scripts/setup.sh --${VARIANT} && rm -r .venv/lib/python3*/site-packages/tensorflow/include

FROM system
COPY --from=environment /wd/.venv .venv
ENV PATH=/wd/.venv/bin:$PATH HOME=/recipe
LABEL org.opencontainers.image.title="Recommender training recipe for TensorFlow" \
      org.opencontainers.image.licenses="Apache-2.0"
# Both variants start the command as it is given, and a shell without one.
ENTRYPOINT ["/wd/scripts/entrypoint.sh"]
CMD ["bash"]
USER 10001:10001
# Readable for all users, whatever the checkout's umask.
COPY --chmod=755 . .
