#!/bin/sh
# The embedded model from nothing: text, tokenizer, training, and the official layout in build/demo-model.
# Python with requirements.txt; a Debian machine for its text; `MINUTES` on one GPU (an H200 took 8).
set -e
cd "$(dirname "$0")"
python3 prepare.py
python3 train.py --minutes "${MINUTES:-8}" --out build/model
python3 checkpoint.py build/model build/demo-model
