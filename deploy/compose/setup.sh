#!/bin/sh
# Makes, once, what docker-compose.yml needs: a password that nobody chose, and a certificate for the server.
#   setup.sh DIRECTORY HOST…      DIRECTORY/server is for the server alone, DIRECTORY/client for all others
set -eu
dir=$1; shift
[ ! -e "$dir/client/url" ] || exit 0
command -v openssl > /dev/null || { echo "setup.sh needs openssl" >&2; exit 1; }
mkdir -p "$dir/server" "$dir/client"
umask 022  # what is read by containers with users of their own; who else can read it is the volume's business
new=$(mktemp -d)
trap 'rm -r "$new"' EXIT

cat > "$new/extensions" <<END
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = IP:127.0.0.1$(printf ', DNS:%s' "$@")
END
# request NAME: a key and a request for a certificate
request() {
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=rqmr $1" \
    -keyout "$new/$1.key" -out "$new/$1.csr" 2>/dev/null
}
request authority
openssl x509 -req -in "$new/authority.csr" -signkey "$new/authority.key" -days 3650 \
  -extfile "$new/extensions" -extensions authority -out "$dir/client/ca.crt" 2>/dev/null
request server
openssl x509 -req -in "$new/server.csr" -CA "$dir/client/ca.crt" -CAkey "$new/authority.key" -set_serial 1 -days 3650 \
  -extfile "$new/extensions" -extensions server -out "$dir/server/server.crt" 2>/dev/null
cp "$new/server.key" "$dir/client/ca.crt" "$dir/server"
chmod 444 "$dir/server/server.key"

password=$(openssl rand -hex 24)
echo "requirepass $password" > "$dir/server/password.conf"
# Last: its presence says that all is there.
echo "rediss://:$password@$1:6379/0?ssl_ca_certs=/run/rqmr/ca.crt" > "$dir/client/url.new"
mv "$dir/client/url.new" "$dir/client/url"
