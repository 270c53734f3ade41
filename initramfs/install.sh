#!/bin/sh
# Copies qx-recover, and what adds it to the initramfs of a distribution, into the root of an image:
#
#     initramfs/install.sh DIR [QX-UPDATE-INITRAMFS]
#
# The second is the static build that only recovers; without it the initramfs has the whole qx-update in it.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
[ -d "${1-}" ] || { echo "initramfs/install.sh: no directory '${1-}'" >&2; exit 1; }
root=$1

put() {
	install -D -m "$1" "$here/$2" "$root$3"
}
put 755 qx-recover /usr/lib/qx-update/qx-recover
[ -z "${2-}" ] || install -D -m 755 "$2" "$root/usr/lib/qx-update/qx-update-initramfs"
put 644 mkinitfs/mkinitfs.conf /usr/lib/qx-update/mkinitfs.conf
put 644 mkinitfs/qx-update.files /etc/mkinitfs/features.d/qx-update.files
put 644 mkinitfs/qx-update.modules /etc/mkinitfs/features.d/qx-update.modules
put 755 initramfs-tools/hook /usr/share/initramfs-tools/hooks/qx-update
put 755 initramfs-tools/init-bottom /usr/share/initramfs-tools/scripts/init-bottom/qx-update
put 755 dracut/module-setup.sh /usr/lib/dracut/modules.d/90qx-update/module-setup.sh
put 755 dracut/qx-update.sh /usr/lib/dracut/modules.d/90qx-update/qx-update.sh
