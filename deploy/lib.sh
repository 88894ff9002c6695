# shellcheck shell=bash
# What deploy/up, deploy/test, deploy/powercut and .ci/run share. Sourced, never run.
# shellcheck disable=SC2034  # what is set here is used there
# Exit codes: 3 = something must be installed first (the message says what), 4 = this machine cannot do it (skipped).

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/gridsocket
# One name for the first job's image, whether it was pulled or built here.
JOB_IMAGE=gridsocket/busybox:local
# Images are pulled only if a registry answers within this; an unreachable one must not hold up the first job.
PULL_SECONDS_MAX=40
# A Docker Engine answers within a second or two of its start; on a slow disk its first start takes longer.
ENGINE_SECONDS_MAX=30

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
note() { printf '    %s\n' "$*" >&2; }
die() { # CODE MESSAGE…
  local code=$1; shift
  printf 'error: %s\n' "$1" >&2; shift
  [ $# = 0 ] || printf '       %s\n' "$@" >&2
  exit "$code"
}
have() { command -v "$1" >/dev/null 2>&1; }
is_root() { [ "$(id -u)" = 0 ]; }

# --- packages ---------------------------------------------------------------------------------------------------------

# System tools (mkfs, dockerd) live here, and a plain user's PATH often leaves it out.
PATH=$PATH:/usr/sbin:/sbin
APT_LOG=${TMPDIR:-/tmp}/gridsocket-apt.$$.log

apt_updated=
apt_update() { # once, however many packages are asked for
  [ -z "$apt_updated" ] || return 0
  apt-get update -qq >"$APT_LOG" 2>&1 || note "apt-get update complained: $(tail -n 1 "$APT_LOG")"
  apt_updated=yes
}

# try_packages COMMAND=PACKAGE…: installs the packages whose commands are missing. 1 where it may not or cannot; $MISSING names them.
try_packages() {
  local pair packages=()
  MISSING=
  for pair in "$@"; do have "${pair%%=*}" || packages+=("${pair#*=}"); done
  [ ${#packages[@]} -gt 0 ] || return 0
  MISSING=${packages[*]}
  have apt-get && is_root || return 1
  say "installing ${packages[*]}"
  apt_update
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >"$APT_LOG" 2>&1 || {
    tail -n 5 "$APT_LOG" >&2
    return 1
  }
  rm -f "$APT_LOG"
  hash -r
  for pair in "$@"; do have "${pair%%=*}" || return 1; done
  MISSING=
}

need_packages() { # PURPOSE COMMAND=PACKAGE…
  local purpose=$1; shift
  try_packages "$@" || die 3 "$purpose needs: $MISSING" \
    "Debian or Ubuntu: sudo apt-get install -y $MISSING" \
    "elsewhere: install what your system calls these, then run this again."
}

# --- Rust -------------------------------------------------------------------------------------------------------------

ensure_rust() {
  local wanted found
  wanted=$(awk -F'"' '/^rust-version/ { print $2; exit }' "$ROOT/Cargo.toml")
  have cargo || PATH=$PATH:$HOME/.cargo/bin
  have cargo || die 3 "Rust $wanted or newer is needed, and there is no cargo on the PATH" "install it from https://rustup.rs, then run this again."
  # A cargo of another home than ours (sudo, a service, an empty home) keeps its toolchains in that home.
  if ! rustc --version >/dev/null 2>&1 && [ -z "${RUSTUP_HOME:-}" ]; then
    found=$(dirname "$(command -v cargo)")/../../.rustup
    if [ -d "$found" ]; then export RUSTUP_HOME; RUSTUP_HOME=$(cd "$found" && pwd); fi
  fi
  found=$(cd "$ROOT" && rustc --version 2>/dev/null | awk '{ print $2 }') || true
  [ -n "$found" ] || die 3 "cargo is here, but no Rust toolchain is chosen" "run: rustup default stable   (or set RUSTUP_HOME to where your toolchains are)"
  printf '%s\n%s\n' "$wanted" "${found%%-*}" | sort -C -V || die 3 "Rust $wanted or newer is needed, this is $found" "run: rustup update stable"
  # ring and blake3 have parts in C.
  need_packages "building" cc=build-essential curl=curl
}

# --- ports and processes ----------------------------------------------------------------------------------------------

port_is_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

free_port() { # a port nobody listens on just now
  local port
  for _ in $(seq 50); do
    port=$((20000 + RANDOM % 12000))
    port_is_taken "$port" || { echo "$port"; return; }
  done
  die 1 "no free port found between 20000 and 32000"
}

stop_process() { # PID SECONDS: asks, waits, then insists
  local pid=$1 deadline=$((SECONDS + $2))
  kill -TERM "$pid" 2>/dev/null || return 0
  while kill -0 "$pid" 2>/dev/null; do
    if [ "$SECONDS" -ge "$deadline" ]; then kill -KILL "$pid" 2>/dev/null || true; break; fi
    sleep 0.1
  done
  wait "$pid" 2>/dev/null || true
}

# --- Docker Engine ----------------------------------------------------------------------------------------------------

ENGINE_PID='' ENGINE_DIR='' ENGINE_DATA='' ENGINE_BRIDGE=''

# engine_curl PATH [CURL-ARGUMENT…]: a request to the Engine's API at $DOCKER_HOST. No docker command line is needed.
engine_curl() {
  local host=${DOCKER_HOST:-unix:///var/run/docker.sock} path=$1
  shift
  case $host in
    unix://*) curl -sS --unix-socket "${host#unix://}" "$@" "http://engine$path" ;;
    tcp://*) curl -sS "$@" "http://${host#tcp://}$path" ;;
    http://*) curl -sS "$@" "${host%/}$path" ;;
    *) echo "DOCKER_HOST=$host: only unix://, tcp:// and http:// are understood" >&2; return 1 ;;
  esac
}

engine_answers() { [ "$(engine_curl /_ping -m 5 2>/dev/null)" = OK ]; }

engine_await() { # PID or empty
  local deadline=$((SECONDS + ENGINE_SECONDS_MAX))
  until engine_answers; do
    [ -z "$1" ] || kill -0 "$1" 2>/dev/null || return 1
    [ "$SECONDS" -lt "$deadline" ] || return 1
    sleep 0.2
  done
}

# Two Engines on one bridge give out the same addresses twice. Where docker0 is there already, ours gets a bridge of its own.
engine_bridge() {
  local name=gs$RANDOM net
  if ! have ip || ! ip link show docker0 >/dev/null 2>&1; then return 0; fi
  for _ in $(seq 20); do
    net=192.168.$((100 + RANDOM % 150))
    ip route | grep -q "^$net\." || break
  done
  ip link add name "$name" type bridge && ENGINE_BRIDGE=$name
  ip addr add "$net.1/24" dev "$name"
  ip link set "$name" up
}

# Starts an Engine of our own. Its images stay in folder $1; where that is '' or in use by another, in one that engine_stop removes.
# Some machines have no overlayfs (containers, odd filesystems), some no usable iptables: each is tried without.
engine_start() {
  local flags lock
  # Short, as socket paths end at 108 bytes.
  mkdir -p /run/gridsocket
  ENGINE_DIR=$(mktemp -d /run/gridsocket/engine.XXXXXX)
  ENGINE_DATA=$1
  if [ -n "$1" ]; then
    mkdir -p "$1"
    # dockerd inherits the lock, so that it holds for as long as dockerd lives.
    exec {lock}>"$1.lock"
    flock -n "$lock" || ENGINE_DATA=
  fi
  [ -n "$ENGINE_DATA" ] || ENGINE_DATA=$(mktemp -d /var/tmp/gridsocket-engine.XXXXXX)
  engine_bridge
  export DOCKER_HOST=unix://$ENGINE_DIR/docker.sock
  for flags in '' '--iptables=false' '--storage-driver=vfs' '--storage-driver=vfs --iptables=false'; do
    # shellcheck disable=SC2086  # several flags in one word, on purpose
    setsid dockerd --data-root "$ENGINE_DATA" --exec-root "$ENGINE_DIR/exec" -H "$DOCKER_HOST" --pidfile "$ENGINE_DIR/pid" \
      ${ENGINE_BRIDGE:+--bridge "$ENGINE_BRIDGE"} $flags >"$ENGINE_DIR/log" 2>&1 </dev/null &
    ENGINE_PID=$!
    if engine_await "$ENGINE_PID"; then
      [ -z "$flags" ] || note "this machine's Engine needs $flags"
      return 0
    fi
    stop_process "$ENGINE_PID" 10
    ENGINE_PID=''
  done
  tail -n 5 "$ENGINE_DIR/log" >&2
  return 1
}

engine_stop() { # what engine_start began, and nothing else
  local table rule
  [ -n "$ENGINE_DIR" ] || return 0
  [ -z "$ENGINE_PID" ] || stop_process "$ENGINE_PID" 20
  case $ENGINE_DATA in */gridsocket-engine.??????) rm -rf "$ENGINE_DATA" ;; esac
  if [ -n "$ENGINE_BRIDGE" ]; then
    # dockerd leaves its bridge's packet filter rules behind.
    for table in nat filter; do
      iptables -t $table -S 2>/dev/null | sed -n "/ $ENGINE_BRIDGE /s/^-A //p" | while read -r rule; do
        # shellcheck disable=SC2086  # a rule is many words
        iptables -t $table -D $rule 2>/dev/null || true
      done
    done
    ip link delete "$ENGINE_BRIDGE" 2>/dev/null || true
  fi
  rm -rf "$ENGINE_DIR"
  ENGINE_PID='' ENGINE_DIR='' ENGINE_BRIDGE=''
}

# ensure_engine DATA: leaves DOCKER_HOST pointing at an Engine that answers. The caller traps engine_stop.
ensure_engine() {
  if engine_answers; then
    export DOCKER_HOST=${DOCKER_HOST:-unix:///var/run/docker.sock}
    note "Docker Engine: $DOCKER_HOST"
    return 0
  fi
  [ -z "${DOCKER_HOST:-}" ] || die 3 "no Docker Engine answers at DOCKER_HOST=$DOCKER_HOST" "start it, or unset DOCKER_HOST."
  [ "$(uname -s)" = Linux ] || die 3 "no Docker Engine answers" "start Docker Desktop (or another Engine), then run this again."
  is_root || have dockerd || die 3 "no Docker Engine answers, and only root may install one" "Debian or Ubuntu: sudo apt-get install -y docker.io && sudo usermod -aG docker $(id -un)"
  is_root || die 3 "no Docker Engine answers to you" "start it: sudo systemctl start docker" "allow yourself: sudo usermod -aG docker $(id -un), then log in again."
  need_packages "running containers" dockerd=docker.io iptables=iptables
  if [ -d /run/systemd/system ] && systemctl start docker >/dev/null 2>&1 && engine_await ''; then
    export DOCKER_HOST=unix:///var/run/docker.sock
    note "Docker Engine: started by systemd"
    return 0
  fi
  engine_start "$1" || die 3 "dockerd does not start on this machine" "its last words are above; an Engine elsewhere serves too: set DOCKER_HOST."
  note "Docker Engine: our own, at $DOCKER_HOST"
}

image_is_there() { [ "$(engine_curl "/images/$1/json" -o /dev/null -w '%{http_code}' 2>/dev/null)" = 200 ]; }

# The first job's image: sh, wc, cat, sleep, seq, yes, head and their kin. Pulled where a registry answers, built here where none does.
ensure_job_image() {
  local tar
  image_is_there "$JOB_IMAGE" && return 0
  say "fetching an image for the first job"
  engine_curl "/images/create?fromImage=docker.io%2Flibrary%2Fbusybox&tag=1" -X POST -m "$PULL_SECONDS_MAX" >/dev/null 2>&1 || true
  if image_is_there busybox:1; then
    engine_curl "/images/busybox:1/tag?repo=${JOB_IMAGE%:*}&tag=${JOB_IMAGE#*:}" -f -X POST >/dev/null && return 0
  fi
  note "no registry answers: building it from this machine's packages"
  tar=$(mktemp)
  "$ROOT/deploy/first-job/image" >"$tar" || { rm -f "$tar"; die 3 "no image for the first job" "no registry answers, and it could not be built here."; }
  engine_curl "/images/create?fromSrc=-&repo=${JOB_IMAGE%:*}&tag=${JOB_IMAGE#*:}&changes=CMD%20%5B%22sh%22%5D&changes=ENV%20PATH%3D/usr/bin:/bin" \
    -f -X POST -H 'Content-Type: application/x-tar' --data-binary @"$tar" >/dev/null || { rm -f "$tar"; die 1 "the Engine would not import the image"; }
  rm -f "$tar"
  image_is_there "$JOB_IMAGE" || die 1 "the Engine imported the image, and does not have it"
}

# A real registry for the tests that pull, push and log in. Where it cannot be had, they say that they are skipped.
ensure_registry() {
  if try_packages docker-registry=docker-registry; then
    export GRIDSOCKET_TEST_REGISTRY=required
  else
    note "no docker-registry: the tests that need a registry are skipped"
  fi
}

# --- WebAssembly ------------------------------------------------------------------------------------------------------

# Sets WASM_RUSTC ('' = the usual one) and WASM_RUNNER. deploy/wasm-toolchain says what it does.
ensure_wasm() {
  local said
  said=$("$ROOT/deploy/wasm-toolchain") || return 1
  WASM_RUSTC=$(sed -n 's/^rustc=//p' <<<"$said")
  WASM_RUNNER=$(sed -n 's/^runner=//p' <<<"$said")
}

# --- steps, for the scripts that check several things -----------------------------------------------------------------

steps_passed=0 steps_failed=0 steps_skipped=0 steps_report=()

# step NAME COMMAND…: runs it and goes on either way. Status 4 means skipped, and its last line of output says why.
step() {
  local name=$1 started status log took
  shift
  say "$name"
  started=$SECONDS
  log=$(mktemp)
  # A subshell, so that an `exit` ends the step and not the run; not behind `||`, which would switch its `set -e` off.
  set +e
  ( set -e; "$@" ) 2>&1 | tee "$log"
  status=${PIPESTATUS[0]}
  set -e
  took=$((SECONDS - started))
  case $status in
    0) steps_passed=$((steps_passed + 1)); steps_report+=("ok       ${took} s  $name") ;;
    4) steps_skipped=$((steps_skipped + 1)); steps_report+=("skipped  ${took} s  $name: $(tail -n 1 "$log" | sed 's/^skipped: //')") ;;
    *) steps_failed=$((steps_failed + 1)); steps_report+=("FAILED   ${took} s  $name (status $status)") ;;
  esac
  rm -f "$log"
}

# Prints the table and the closing line; fails if any step did.
steps_end() {
  echo
  printf '%s\n' "${steps_report[@]}"
  echo "$1: $steps_passed passed, $steps_failed failed, $steps_skipped skipped"
  [ "$steps_failed" = 0 ]
}
