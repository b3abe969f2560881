FROM rust:1.95-bookworm AS build
# Embeds the list of crates into the program, where image scanners find it.
RUN cargo install --locked cargo-auditable@0.7.7
WORKDIR /build

# The dependencies take most of the build time and seldom change, so they get a layer of their own,
# built with an empty program. The other targets are removed because their files are not copied yet.
COPY Cargo.toml Cargo.lock ./
RUN sed -i '/^\[\[\(bench\|example\|test\)\]\]/,/^$/d' Cargo.toml \
    && mkdir src \
    && touch src/lib.rs \
    && echo 'fn main() {}' > src/main.rs \
    && cargo auditable build --release --locked

# Cargo compares timestamps, and a checkout may be older than the empty program above.
COPY . .
# The image build has no access to the repository, so the commit is passed in here.
ARG REVISION=unknown
RUN touch src/lib.rs src/main.rs \
    && BUILD_COMMIT="${REVISION}" cargo auditable build --release --locked


FROM debian:bookworm-slim

RUN groupadd --gid 10001 agentarea \
    && useradd --uid 10001 --gid agentarea --no-create-home --home-dir /app \
        --shell /usr/sbin/nologin agentarea \
    # The only folder that this user may write to, for SQLite, whose default path is
    # data/agentarea.db. Mount a volume there to keep it; with PostgreSQL the whole image may be
    # read-only.
    && install -d -o agentarea -g agentarea /data \
    && install -d /app \
    && ln -s /data /app/data

WORKDIR /app
# Certificate authorities, for TLS to Redis, PostgreSQL and Temporal: only the list, without the
# packages on which Debian's package depends.
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
# For `serve`. Kubernetes ignores it, and a `worker` has no port to check.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["agentarea-api", "health"]
ENTRYPOINT ["agentarea-api"]
CMD ["serve"]
