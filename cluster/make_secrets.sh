#!/usr/bin/env bash
# Makes the secrets of cluster/kuberay, with passwords that nobody has seen, in the namespace `tubelet`:
#
#   cluster/make_secrets.sh                                             # PostgreSQL of the overlay `small`
#   cluster/make_secrets.sh postgresql+psycopg://USER:PASSWORD@HOST/DB  # one that the cloud runs
#
# MLflow's administrator is `admin`; his password: kubectl get secret tubelet-env -n tubelet \
#   -o jsonpath='{.data.MLFLOW_TRACKING_PASSWORD}' | base64 -d
set -euo pipefail
namespace=tubelet
postgres=$(openssl rand -hex 24) admin=$(openssl rand -hex 24) flask=$(openssl rand -hex 32)
store=${1:-postgresql+psycopg://mlflow:$postgres@postgres:5432/mlflow}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
umask 077
# In ini files a per cent sign is doubled.
cat > "$folder/basic_auth.ini" <<INI
[mlflow]
default_permission = READ
database_uri = ${store//%/%%}
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
admin_password = $admin
INI
kubectl create namespace "$namespace" --dry-run=client -o yaml | kubectl apply -f -
kubectl create secret generic mlflow --namespace "$namespace" \
  --from-literal=backend-store-uri="$store" --from-literal=postgres-password="$postgres" \
  --from-literal=flask-secret-key="$flask" --from-file=basic_auth.ini="$folder/basic_auth.ini"
kubectl create secret generic tubelet-env --namespace "$namespace" \
  --from-literal=MLFLOW_TRACKING_USERNAME=admin --from-literal=MLFLOW_TRACKING_PASSWORD="$admin"
