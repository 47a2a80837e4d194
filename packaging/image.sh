#!/usr/bin/env bash
# image.sh ARCH...: packs the static dlock of each architecture as a container image, target/image/dlock-VERSION-ARCH.tar: an
# archive that `docker load`, `podman load` and `skopeo copy oci-archive:` read. No daemon builds it, and the same files make
# the same bytes. It must not know how dlock is built.
set -euo pipefail
cd "$(dirname "$0")/.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
created=$(date --utc --date "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)
rm -rf target/image
mkdir -p target/image
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

pack() {
    tar --create --directory "$1" --sort=name --format=ustar --mtime="@$SOURCE_DATE_EPOCH" \
        --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX .
}

digest() {
    sha256sum "$1" | cut -d ' ' -f 1
}

# blob FILE MEDIA-TYPE: moves the file where an image has its parts, and prints the descriptor of it.
blob() {
    local sum size
    sum=$(digest "$1") size=$(stat -c %s "$1")
    mv "$1" "$image/blobs/sha256/$sum"
    jq --null-input --compact-output --arg type "$2" --arg digest "sha256:$sum" --argjson size "$size" \
        '{mediaType: $type, digest: $digest, size: $size}'
}

for arch; do
    case $arch in
    x86_64) platform=amd64 ;;
    aarch64) platform=arm64 ;;
    esac
    root=$work/$arch/root image=$work/$arch/image
    mkdir -p "$image/blobs/sha256"
    install -D -m 755 "target/$arch-unknown-linux-musl/release/dlock" "$root/usr/bin/dlock"
    install -D -m 644 LICENSE "$root/usr/share/doc/dlock/LICENSE"
    install -D -m 644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
    echo 'nobody:x:65534:65534:nobody:/:/usr/sbin/nologin' >"$root/etc/passwd"
    echo 'nogroup:x:65534:' >"$root/etc/group"
    pack "$root" >"$work/layer.tar"
    contents=sha256:$(digest "$work/layer.tar")
    gzip -9 --no-name "$work/layer.tar"
    layer=$(blob "$work/layer.tar.gz" application/vnd.oci.image.layer.v1.tar+gzip)
    jq --null-input --compact-output --arg created "$created" --arg platform "$platform" --arg contents "$contents" \
        --arg version "$version" '{
            created: $created, architecture: $platform, os: "linux",
            config: {
                User: "65534:65534", Entrypoint: ["/usr/bin/dlock"], Env: ["PATH=/usr/bin:/bin"],
                Labels: {
                    "org.opencontainers.image.title": "dlock", "org.opencontainers.image.version": $version,
                    "org.opencontainers.image.licenses": "MIT OR Apache-2.0"
                }
            },
            rootfs: {type: "layers", diff_ids: [$contents]},
            history: [{created: $created, created_by: "packaging/image.sh"}]
        }' >"$work/config"
    config=$(blob "$work/config" application/vnd.oci.image.config.v1+json)
    jq --null-input --compact-output --argjson config "$config" --argjson layer "$layer" '{
            schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json", config: $config, layers: [$layer]
        }' >"$work/manifest"
    manifest=$(blob "$work/manifest" application/vnd.oci.image.manifest.v1+json)
    echo '{"imageLayoutVersion":"1.0.0"}' >"$image/oci-layout"
    jq --null-input --compact-output --argjson manifest "$manifest" --arg version "$version" --arg platform "$platform" '{
            schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json",
            manifests: [$manifest + {
                platform: {architecture: $platform, os: "linux"},
                annotations: {"org.opencontainers.image.ref.name": $version}
            }]
        }' >"$image/index.json"
    # What docker load read before it knew OCI's layout, of the same parts.
    path() { jq --raw-output '.digest | "blobs/" + sub(":"; "/")'; }
    jq --null-input --compact-output --arg config "$(path <<<"$config")" --arg layer "$(path <<<"$layer")" \
        --arg tag "dlock:$version" '[{Config: $config, RepoTags: [$tag], Layers: [$layer]}]' >"$image/manifest.json"
    pack "$image" >"target/image/dlock-$version-$arch.tar"
done
ls target/image/*.tar
