# The broker's image: one static program and a folder for its data.
#   deploy/image                                               what is built and tested here, without a registry
#   docker build -f deploy/broker.Dockerfile -t my/broker .    the same from the sources alone, where a registry answers
#   docker run -v data:/data -p 8080:8080 my/broker
FROM scratch AS base
ENV GRIDSOCKET_LISTEN=0.0.0.0:8080 GRIDSOCKET_DATA=/data
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["/gridsocket", "healthcheck"]
ENTRYPOINT ["/gridsocket"]
CMD ["serve"]

# What deploy/image builds: the folder's files as it has laid them out. A volume that is mounted there for the first time takes the
# folder's owner over.
FROM base AS prebuilt
ADD root.tar /
VOLUME /data
USER 65532:65532

FROM rust:1.95-bookworm AS build
COPY . /src
WORKDIR /src
RUN deploy/image --root /root.tar && mkdir /files /owned && tar -xf /root.tar -C /files && mv /files/data /owned/

FROM base
COPY --from=build /files /
COPY --from=build --chown=65532:65532 /owned /
VOLUME /data
USER 65532:65532
