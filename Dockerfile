# The image that serves: `docker build -t easel .`, for linux/amd64 and linux/arm64.
#
# PyPI's wheels of this torch are CUDA 13 builds for both, and the arm64 wheel runs on the GB10 of a
# DGX Spark (sm_121). They need NVIDIA's driver 580 or newer on the host. A machine without a GPU
# does not need the CUDA build:
#
#   docker build --build-arg PIP_EXTRA_INDEX_URL=PYTORCHS_CPU_INDEX --build-arg C_COMPILER= .
#
# pip then finds torch 2.13.0+cpu beside 2.13.0 and prefers it. PIP_FIND_LINKS does the same with a
# page of links, or with a folder that the builder mounts.

FROM python:3.12-slim AS dependencies
# The Makefile names the same release.
ARG TORCH="torch==2.13.0"
ARG PIP_EXTRA_INDEX_URL=""
ARG PIP_FIND_LINKS=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
# pip has an environment of its own, which is not copied into the image.
RUN python -m venv /opt/build && python -m venv --without-pip /opt/easel
COPY pyproject.toml constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > requirements.txt \
    && /opt/build/bin/pip --python /opt/easel/bin/python install -c constraints.txt "$TORCH" -r requirements.txt

FROM dependencies AS easel
COPY . .
# Installed under a root of its own, so that the layer copied from it holds Easel alone.
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/build/bin/pip --python /opt/easel/bin/python install --no-deps --root /staged .

FROM python:3.12-slim
LABEL org.opencontainers.image.title="Easel" \
      org.opencontainers.image.description="An OpenAI-compatible server for block-diffusion language models" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
# Triton 3.7 and 3.9 compile a C module when they start their first kernel
# (triton/backends/nvidia/driver.c). It is linked to the host's libcuda, so it can't be compiled
# here. gcc and its headers take 201 MB. tcc would take 22 MB, but it does not understand how Triton
# names that library.
ARG C_COMPILER="gcc libc6-dev"
# The versions are not pinned, because Debian keeps only the newest security update of a release.
# hadolint ignore=DL3008,SC2086
RUN if [ -n "$C_COMPILER" ]; then \
        apt-get update && apt-get install --yes --no-install-recommends $C_COMPILER \
        && rm -rf /var/lib/apt/lists/*; \
    fi
# The base image's pip is removed, because nothing is installed in a container. Any user can write
# the cache, as with /tmp, so that --user can name the owner of a mounted folder.
RUN rm -rf /usr/local/bin/pip* /usr/local/lib/python3*/ensurepip /usr/local/lib/python3*/site-packages/pip* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /cache easel \
    && install --directory --owner easel --group easel --mode 1777 /cache
COPY --from=dependencies /opt/easel /opt/easel
COPY docker/entrypoint.py docker/healthcheck.py /opt/docker/
COPY --from=easel /staged/opt/easel /opt/easel
# Everything that outlives a container is in /cache: checkpoints are in /cache/huggingface, and
# compiled kernels in /cache/.triton.
ENV PATH=/opt/easel/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/cache \
    XDG_CACHE_HOME=/cache \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    EASEL_HOST=0.0.0.0
VOLUME /cache
EXPOSE 8000
USER 10001:10001
STOPSIGNAL SIGTERM
# The first start downloads the model, which may take an hour. Being unready is no failure then.
HEALTHCHECK --interval=10s --timeout=5s --start-period=1h --retries=3 \
    CMD ["python", "/opt/docker/healthcheck.py"]
ENTRYPOINT ["python", "/opt/docker/entrypoint.py"]
CMD ["serve"]
