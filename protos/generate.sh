#!/usr/bin/env bash
# The only way stubs are made: run it after every change of a .proto, and commit what it writes.
# usage: protos/generate.sh [OUT_DIR]     (default: beside the .proto files)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-$here}
python=${PYTHON:-$here/../.venv/bin/python}
google=$("$python" -c 'import google.api, os; print(os.path.dirname(os.path.dirname(list(google.api.__path__)[0])))')
cd "$here"
mapfile -t api < <(find fitserve -name '*.proto' | sort)
"$python" -m grpc_tools.protoc -I . -I "$google" --python_out="$out" --pyi_out="$out" --grpc_python_out="$out" "${api[@]}"
# A file without services yields an empty service stub.
rm -f "$out"/fitserve/types/v1/tensor_pb2_grpc.py
