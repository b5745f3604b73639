#!/bin/sh
# Installs what the demo and the tests need and the machine lacks (Debian): PostgreSQL, Redis, NATS, a C compiler for ring and zstd,
# Python for the verifier in docs.
# Runs as root or with sudo. Nothing is started or configured; tailwater starts private servers of its own.
set -eu

missing=""
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null 2>&1 || missing="$missing postgresql"
command -v redis-server >/dev/null 2>&1 || missing="$missing redis-server"
{ command -v nats-server >/dev/null 2>&1 || [ -x /usr/sbin/nats-server ]; } || missing="$missing nats-server"
command -v cc >/dev/null 2>&1 || missing="$missing gcc libc6-dev"
command -v python3 >/dev/null 2>&1 || missing="$missing python3"
command -v openssl >/dev/null 2>&1 || missing="$missing openssl"
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then run=""; else run="sudo"; fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "error: these are missing, and this is not Debian:$missing" >&2
    exit 69
fi
echo "installing:$missing"
$run env DEBIAN_FRONTEND=noninteractive apt-get update -qq
# shellcheck disable=SC2086
$run env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing >/dev/null
