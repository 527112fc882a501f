#!/bin/sh
# Install Chromium for the tests of the page (`tests/demo/test_browser.py`), which drive it without a window; without it they are
# skipped. Needs root and apt-get; where a Chromium or Chrome is there already, nothing is done.
#
#   sh scripts/install_browser.sh
set -eu

for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null; then
        echo "install_browser.sh: $(command -v "$name") is there already"
        exit
    fi
done
apt-get update -qq || true
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core
