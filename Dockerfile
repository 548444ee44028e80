# A shoal node in a container. `docker build -t shoal .`; what to do with it: docs/docker.md.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# Where pip looks besides its own default, for machines that have a mirror or wheels of their own.
ARG PIP_FIND_LINKS
ARG PIP_INDEX_URL
# fastecdsa, which libp2p needs, is compiled here.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev libgmp-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY constraints.txt pyproject.toml ./
# The dependencies alone first: this layer, nearly all of the image, stays the same while the code changes.
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > requirements.txt \
    && python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir -c constraints.txt setuptools -r requirements.txt \
    && echo /opt/shoal > "$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/shoal.pth"
COPY README.md ./
COPY protocol protocol
COPY crdt crdt
COPY trainers trainers
COPY node node
RUN /opt/venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation --target /opt/shoal .
# The default corpus goes into the image, because a swarm without an uplink cannot fetch it.
RUN /opt/shoal/bin/shoal data fetch shakespeare --cache /var/cache/shoal

FROM ${PYTHON_IMAGE}
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgmp10 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home shoal \
    && install -d -o shoal -g shoal -m 0700 /data
COPY --from=build /opt/venv /opt/venv
COPY --from=build --chown=shoal:shoal /var/cache/shoal /var/cache/shoal
COPY --from=build /opt/shoal /opt/shoal
COPY examples /opt/shoal/examples
ENV PATH=/opt/shoal/bin:/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    SHOAL_CACHE=/var/cache/shoal \
    SHOAL_DATA=/data
WORKDIR /opt/shoal
USER shoal
VOLUME /data
EXPOSE 4001/tcp
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 CMD ["shoal", "status", "--quiet"]
ENTRYPOINT ["shoal"]
CMD ["--help"]
