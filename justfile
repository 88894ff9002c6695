# The commands of this project. `just` lists them.
set shell := ["bash", "-euo", "pipefail", "-c"]

_default:
  @just --list --unsorted

# install what is missing, build, start a local grid, run a first job (--once, --debug, --port P)
up *args:
  deploy/up {{args}}

# every test: code, WebAssembly, power cuts, the first job
test:
  deploy/test

# the static half: format, lints, documentation, WebAssembly build, licences
check: && deny
  cargo fmt --all --check
  cargo clippy --locked --workspace --all-targets -- -D warnings
  RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps
  source deploy/lib.sh && ensure_wasm && RUSTC=${WASM_RUSTC:-rustc} cargo build --locked -p client-wasm --target wasm32-unknown-unknown --target-dir target/wasm

# licences, bans, sources and advisories (needs cargo-deny and the network)
deny:
  @if command -v cargo-deny >/dev/null; then cargo deny --config .deny.toml check; else echo "skipped: cargo-deny is not installed (cargo install cargo-deny)"; fi

# the container images gridsocket/worker and gridsocket/broker, in the Docker Engine (--debug, --tag T)
image *args:
  deploy/image {{args}}

# speeds beside their floors and peers, in one run; see docs/performance.md
bench *args:
  deploy/bench-peers {{args}}
  cargo build --locked --release -p gridsocket --bin gridsocket --example bench
  ${CARGO_TARGET_DIR:-target}/release/examples/bench {{args}}

# what takes longer than a test may: kill | powercut | flips | watch | storm | fair | grid | conformance | logs | worker | flood
soak *args:
  cargo build --locked --release -p gridsocket --bins --example soak --example powercut_writer --example powercut_checker
  "${CARGO_TARGET_DIR:-target}/release/examples/soak" {{args}}

# a local grid from the unoptimised build
dev *args:
  cargo run -p gridsocket -- local {{args}}

# format the code
fmt:
  cargo fmt --all
