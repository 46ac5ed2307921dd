# pfms in an image: any user in group 0 may run it; all its data is on the volume /workspace.
#
#   docker build --build-arg UID=$UID -t local/pfms .
#   docker run --gpus all --shm-size 2g -p 127.0.0.1:2024:2024 -v pfms:/workspace \
#       -e PFMS_INSECURE=true local/pfms
#
# It serves every address of its container, and so does not start before it is told who may call:
# PFMS_TOKENS_FILE=/workspace/tokens.json (pfms tokens add makes it), or PFMS_INSECURE=true for everyone
# who reaches the published port.
#
# With Ray, for PFMS_EXECUTOR=ray and for its nodes: --build-arg EXTRAS=server,plugin,ray
#
# Without a GPU: --build-arg TORCH_INDEX=URL installs torch from there (PyTorch's CPU build is
# several GB smaller), and no --gpus. CONTRIBUTING.md says how this file is tested without Docker.

FROM python:3.11-slim AS builder

# tini is PID 1 of the image: it forwards signals, and reaps what a killed run leaves behind. npm
# fetches the viewer of the page.
RUN apt-get update && apt-get install -y --no-install-recommends tini npm

# The same step as `make install`, in the folder where the package will be found later. Only the
# files that determine the libraries are copied, so that a source change does not repeat it.
ARG TORCH_INDEX=
ARG EXTRAS=server,plugin
ENV PIP_NO_CACHE_DIR=1
WORKDIR /srv
COPY pyproject.toml constraints.txt ./
COPY tools/install.py tools/
RUN mkdir pfms && touch pfms/__init__.py README.md \
    && python tools/install.py --venv /opt/venv --extras "$EXTRAS" --torch-index "$TORCH_INDEX"

# The manual, built by a program that the image does not keep.
RUN /opt/venv/bin/pip install --target /opt/zensical --constraint constraints.txt zensical
COPY README.md SECURITY.md CONTRIBUTING.md CHANGELOG.md config.env docker-compose.yml ./
COPY bench/results/bench.png bench/results/
COPY workspace/README.md workspace/
COPY deploy deploy
COPY docs docs
COPY examples examples
COPY tools/manual tools/manual
COPY pfms pfms
RUN PYTHONPATH=/opt/zensical /opt/venv/bin/python -m tools.manual

# The viewer of the page, of locked versions; the page works without it, too.
COPY tools/viewer tools/viewer
RUN mkdir pfms/page/vendor && /opt/venv/bin/python -m tools.viewer


FROM python:3.11-slim

# A random UID has no passwd entry and no home: USER and HOME take their place.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    USER=pfms \
    HOME=/home/pfms \
    MPLCONFIGDIR=/home/pfms/matplotlib \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PFMS_HOST=0.0.0.0 \
    PFMS_PORT=2024 \
    PFMS_WORKSPACE=/workspace \
    PFMS_LOG_FORMAT=json

COPY --from=builder /usr/bin/tini /usr/bin/
COPY --from=builder /opt/venv /opt/venv
# matplotlib scans the fonts once; here, and not in each new container.
RUN python -c "import matplotlib.font_manager"

COPY LICENSE /srv/
COPY examples /srv/examples
COPY docker/start.sh docker/start-reload.sh docker/healthcheck.py /
# The package's contents are at /app, where `-v $PWD/pfms:/app:ro` mounts a newer source over them;
# Python finds them as /srv/pfms, because the environment was installed to look there.
COPY pfms /app
COPY --from=builder /srv/pfms/manual /app/manual
COPY --from=builder /srv/pfms/page/vendor /app/page/vendor
RUN ln -s /app /srv/pfms \
    && mkdir /workspace \
    && python -m compileall -q /app \
    && chmod -R a+rX /app /srv \
    && chmod 755 /start.sh /start-reload.sh \
    && chmod 644 /healthcheck.py \
    && chgrp -R 0 /workspace /home/pfms \
    && chmod -R ug+rwX,o+rX /workspace /home/pfms

ARG UID=1000
USER ${UID:-1000}:0
WORKDIR /workspace
VOLUME /workspace
EXPOSE 2024
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s \
    CMD ["python", "-I", "/healthcheck.py"]
ENTRYPOINT ["tini", "--"]
CMD ["/start.sh"]
