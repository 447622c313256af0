#!/bin/sh
# Install PyTorch with the given Python: the CPU build where a Linux machine has no NVIDIA GPU (the plain index would
# bring gigabytes of CUDA libraries), else the plain one.
#
#   scripts/install_torch.sh .venv/bin/python
set -eu
python=$1

if "$python" -c 'import torch' 2>/dev/null; then
    exit 0
fi
if [ "$(uname -s)" != Linux ] || command -v nvidia-smi >/dev/null 2>&1; then
    exec "$python" -m pip install 'torch>=2.4'
fi
# PyTorch's own index of CPU wheels and no other one (a newer version there would bring CUDA after all); where it cannot
# be reached, a version that the usual index has.
PIP_CONFIG_FILE=/dev/null PIP_EXTRA_INDEX_URL= "$python" -m pip install --timeout 5 --retries 0 'torch>=2.4' \
    --index-url https://download.pytorch.org/whl/cpu && exit
echo "PyTorch's own index cannot be reached: taking torch 2.13.0 from the usual one"
exec "$python" -m pip install 'torch==2.13.0'
