#!/bin/bash
# Adds qx-recover to an initramfs of dracut.

check() {
	[ -x "$dracutsysrootdir/usr/lib/qx-update/qx-recover" ]
}

installkernel() {
	hostonly='' instmods ext4 xfs
}

install() {
	inst_script /usr/lib/qx-update/qx-recover
	local file
	for file in /etc/qx-update/boot.conf /usr/lib/qx-update/qx-update-initramfs; do
		[ ! -e "$dracutsysrootdir$file" ] || inst "$file"
	done
	[ -e "$dracutsysrootdir/usr/lib/qx-update/qx-update-initramfs" ] || inst /usr/bin/qx-update
	inst_multiple cat chroot findfs grep mkdir modprobe mount mv rm sed sh sleep tail timeout tr umount
	# The root is mounted, and nothing of it runs yet.
	inst_hook pre-pivot 50 "$moddir/qx-update.sh"
}
