# The root file system of the managed plugin, for managed/build (`make plugin`): Debian's packages and nothing else.
# Two builds from the same packages have the same content, whenever and wherever they are made.
ARG BASE=debian:trixie-slim
FROM $BASE

# tini: what a pass leaves behind when it is ended early becomes the first process's to reap.
RUN set -e; \
    apt-get update; \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        python3 python3-flask python3-gunicorn python3-click python3-rich tini

COPY managed/hostprep /usr/bin/
COPY plugin/hostprep /usr/lib/hostprep/hostprep
COPY managed/trim /tmp/
RUN sh /tmp/trim
