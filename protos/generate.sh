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
rm -f "$out"/fitserve/types/v1/tensor_pb2_grpc.py "$out"/fitserve/access/v1/access_pb2_grpc.py

# Protocols that others define go into a descriptor pool of our own (fitserve_oip/pool.py), so no Python stub that would
# register them in the default one: the descriptors as one file, and the types for mypy.
mapfile -t foreign < <(find fitserve_oip -name '*.proto' | sort)
mkdir -p "$out/fitserve_oip"
"$python" -m grpc_tools.protoc -I . --include_imports --descriptor_set_out="$out/fitserve_oip/descriptors.binpb" \
  --pyi_out="$out" "${foreign[@]}"
# Same messages as v1: nobody imports them.
rm -f "$out"/fitserve_oip/reflection_v1alpha_pb2.pyi
