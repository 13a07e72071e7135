#!/bin/sh
# A Redis server on port 6390 with a password, and TLS with a certificate that it signed itself. Both are made at the
# first start: what sidecars need in `secrets/default/redis`, the server's own in `server`.
set -eu
umask 077
secret=secrets/default/redis
mkdir -p "$secret" server
if [ ! -s server/tls.key ]; then
    openssl rand -hex 32 > "$secret/password"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 365 -subj /CN=redis \
        -addext basicConstraints=critical,CA:FALSE -addext subjectAltName=IP:127.0.0.1 \
        -keyout server/tls.key -out "$secret/ca.crt" 2> /dev/null
fi
echo "requirepass $(cat "$secret/password")" > server/redis.conf
exec redis-server server/redis.conf --bind 127.0.0.1 --port 0 --tls-port 6390 --tls-auth-clients no \
    --tls-cert-file "$secret/ca.crt" --tls-key-file server/tls.key --tls-ca-cert-file "$secret/ca.crt" \
    --save "" --maxmemory 64mb --maxmemory-policy allkeys-lru --logfile server/redis.log
