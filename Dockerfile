# The one image of all roles:   docker build -t logweir --build-arg REVISION=$(git rev-parse HEAD) .
#
# Three layers, the most lasting first: Python, what we depend on, and we. Built twice it is the same
# (BuildKit: --build-arg SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) --output ...,rewrite-timestamp=true).
# tests/e2e/images.py makes the same without Docker, on Debian's Python, from these instructions.
ARG PYTHON=3.13.9-slim-bookworm

FROM python:${PYTHON} AS dependencies
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1
COPY image/requirements.lock /src/image/
RUN python -m venv --without-pip /opt/logweir \
 && pip --python /opt/logweir/bin/python install --no-deps --require-hashes -r /src/image/requirements.lock \
 && python -m compileall -q --invalidation-mode unchecked-hash /opt/logweir/lib

FROM dependencies AS application
COPY image/build.lock /src/image/
RUN pip install --no-deps --require-hashes -r /src/image/build.lock
ARG SOURCE_DATE_EPOCH=0
COPY . /src
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheel /src \
 && pip --python /opt/logweir/bin/python install --no-deps --no-index --root /new /wheel/*.whl \
 && python -m compileall -q --invalidation-mode unchecked-hash -s /new /new/opt/logweir/lib \
 && PYTHONPATH="$(echo /new/opt/logweir/lib/python*/site-packages)" \
    /opt/logweir/bin/python /src/image/sbom.py /new/usr/share/sbom/logweir.cdx.json

FROM python:${PYTHON}
ARG SOURCE_DATE_EPOCH=0
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="Logweir" \
      org.opencontainers.image.description="A multi-tenant log platform on the PostgreSQL and Redis that a team already operates" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# Some of what runs here wants a name for its user. Nothing can be installed any more.
RUN groupadd --gid 65532 logweir \
 && useradd --uid 65532 --gid 65532 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin logweir \
 && rm -rf /usr/local/lib/python3*/site-packages/pip* /usr/local/lib/python3*/ensurepip /usr/local/bin/pip* \
           /var/log/* /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow-
COPY --from=dependencies /opt/logweir /opt/logweir
COPY --from=application /new /
ENV PATH=/opt/logweir/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["logweir"]
