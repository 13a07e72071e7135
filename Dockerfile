# Static binaries in images that hold nothing else. Needs its base image and the crates, nothing more.
#
#   docker build --target sidecar       -t weft-sidecar .
#   docker build --target control-plane -t weft-control-plane .

FROM rust:1.95-bookworm AS build
WORKDIR /weft
COPY . .
# Fully static: no loader, no shared libraries. Since glibc 2.34 the hosts file and DNS are part of the library itself,
# so names resolve without NSS plug-ins. With an explicit --target, build scripts and procedural macros stay dynamic.
#
# Crates and compiled dependencies live in cache mounts: after a change only what changed is built.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/weft/target \
    set -eu; \
    target=$(rustc -vV | sed -n 's/^host: //p'); \
    RUSTFLAGS="-C target-feature=+crt-static" \
        cargo build --release --locked --target "$target" -p weft-sidecar -p weft-control-plane; \
    mkdir -p /out/bin /out/var/lib/weft; \
    chmod 0700 /out/var/lib/weft; \
    install -m 0555 "target/$target/release/weft-sidecar" "target/$target/release/weft-control-plane" /out/bin/

FROM scratch AS sidecar
COPY --from=build /out/bin/weft-sidecar /weft-sidecar
# Last accepted policy and identity; owned by the user below.
COPY --from=build --chown=65532:65532 /out/var /var
ENV WEFT_STATE_DIR=/var/lib/weft
USER 65532:65532
EXPOSE 15001 15006 15020
ENTRYPOINT ["/weft-sidecar"]

FROM scratch AS control-plane
COPY --from=build /out/bin/weft-control-plane /weft-control-plane
# The CA key and the key of join tokens; owned by the user below.
COPY --from=build --chown=65532:65532 /out/var /var
ENV WEFT_CP_STATE_DIR=/var/lib/weft \
    WEFT_CP_LISTEN=0.0.0.0:15012 \
    WEFT_CP_METRICS=0.0.0.0:15014 \
    WEFT_CP_DASHBOARD=0.0.0.0:15080
USER 65532:65532
EXPOSE 15012 15014 15080
ENTRYPOINT ["/weft-control-plane"]
