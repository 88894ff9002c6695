# The worker's image: one static program and nothing else. Existing `docker run` commands work with it, only the image's name changes.
#   deploy/image                                               what is built and tested here, without a registry
#   docker build -f deploy/worker.Dockerfile -t my/worker .    the same from the sources alone, where a registry answers
FROM scratch AS base
LABEL container.mtfm.io=worker
# Local mode (`--mode=local`) has to listen on all addresses to be reached through a published port; it checks names and origins.
# The data folder must have the same path on both sides: `-v /tmp:/tmp` is what people mount.
ENV METAPAGE_IO_WORKER_LISTEN=0.0.0.0 METAPAGE_IO_WORKER_DATA_DIRECTORY=/tmp/worker-metapage-io
EXPOSE 8000
STOPSIGNAL SIGTERM
ENTRYPOINT ["/gridsocket"]

# What deploy/image builds: the folder's files as it has laid them out.
FROM base AS prebuilt
ADD root.tar /

FROM rust:1.95-bookworm AS build
COPY . /src
WORKDIR /src
RUN deploy/image --root /root.tar && mkdir /files && tar -xf /root.tar -C /files

FROM base
COPY --from=build /files /
