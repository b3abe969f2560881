FROM rust:1.95-bookworm AS build
# Puts the list of the crates into the program, where scanners of images find it.
RUN cargo install --locked cargo-auditable@0.7.7
WORKDIR /build

# The dependencies take most of the time and seldom change: they get a layer of their own, made
# with an empty program. The other targets are cut because their files are not here yet.
COPY Cargo.toml Cargo.lock ./
RUN sed -i '/^\[\[\(bench\|example\|test\)\]\]/,/^$/d' Cargo.toml \
    && mkdir src \
    && touch src/lib.rs \
    && echo 'fn main() {}' > src/main.rs \
    && cargo auditable build --release --locked

# Cargo goes by time stamps, and a checkout may be older than the empty program above.
COPY . .
# The repository itself stays outside; the program learns its commit from here.
ARG REVISION=unknown
RUN touch src/lib.rs src/main.rs \
    && BUILD_COMMIT="${REVISION}" cargo auditable build --release --locked


FROM debian:bookworm-slim

RUN groupadd --gid 10001 agentarea \
    && useradd --uid 10001 --gid agentarea --no-create-home --home-dir /app \
        --shell /usr/sbin/nologin agentarea \
    # The one place this user may write to, for SQLite, whose default path is data/agentarea.db.
    # Mount a volume there to keep it; with PostgreSQL the whole image may be read-only.
    && install -d -o agentarea -g agentarea /data \
    && install -d /app \
    && ln -s /data /app/data

WORKDIR /app
# Certificate authorities, for TLS to Redis, PostgreSQL and Temporal: the list alone, without the
# packages that Debian's own brings along.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY config/ config/
COPY --from=build /build/target/release/agentarea-api /usr/local/bin/

ARG VERSION=unknown
ARG SOURCE=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="agentarea-api" \
      org.opencontainers.image.description="The front door of an AgentArea deployment: events and durable executions over managed connections" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.vendor="AgentArea contributors" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

ENV ENVIRONMENT=production
# By number, so that Kubernetes can see that it is not root (runAsNonRoot).
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# For `serve`. Kubernetes ignores it, and a `worker` has no port to ask.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["agentarea-api", "health"]
ENTRYPOINT ["agentarea-api"]
CMD ["serve"]
