# An image that serves the default model; weights are fetched into the volume at the first start.
#
#   docker build -t steerserve .
#   docker run --network host steerserve                                # http://127.0.0.1:8000, this machine alone
#   docker run -p 8000:8000 -e STEERSERVE_API_KEY=... steerserve serve --host 0.0.0.0
#
# For a CPU build of torch on Linux, name an index that has one:
#   docker build --build-arg PIP_EXTRA_INDEX_URL=... -t steerserve .
FROM python:3.12-slim

ARG PIP_EXTRA_INDEX_URL=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY presets ./presets
COPY steerserve ./steerserve
RUN PIP_EXTRA_INDEX_URL="$PIP_EXTRA_INDEX_URL" pip install -c constraints.txt . \
    && useradd --create-home --uid 10001 steerserve \
    && mkdir -p /cache /work && chown steerserve /cache /work

USER steerserve
WORKDIR /work
ENV STEERSERVE_CACHE_DIR=/cache
VOLUME ["/cache"]
EXPOSE 8000
HEALTHCHECK --start-period=180s --interval=30s --timeout=5s \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ.get('STEERSERVE_SERVER__PORT', '8000') + '/health', timeout=4)"]
ENTRYPOINT ["steerserve"]
CMD ["serve"]
