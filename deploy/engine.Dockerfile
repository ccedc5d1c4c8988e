# A Docker engine from Debian's packages, for places where `docker:dind` cannot be pulled.
ARG BASE_IMAGE=debian:bookworm-slim
FROM ${BASE_IMAGE}
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends docker.io iptables \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
VOLUME /var/lib/docker
CMD ["dockerd"]
