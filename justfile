# `just` lists these; each is one command that also works without just.

_default:
    @just --list

# quick: format, lints, dependency rules
check:
    cargo fmt --check
    cargo clippy --all-targets --locked -- -D warnings
    cargo deny check bans licenses sources
    cargo machete

# the files that are generated from the code
generate:
    cargo run --locked -- --config-dir /nonexistent config default > config/default.toml
    cargo run --locked -- --config-dir /nonexistent config schema > config/schema.json
    cargo run --locked -- --config-dir /nonexistent config docs > docs/configuration.md
    cargo run --locked -- --config-dir /nonexistent openapi > openapi/agentarea-api.yaml

# everything CI runs, on real servers
test:
    scripts/test

# the service with its embedded defaults
run *ARGS:
    cargo run --locked -- {{ ARGS }}

# the crate's documentation, in the browser
docs:
    cargo doc --no-deps --locked --open

fmt:
    cargo fmt
