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
	inst_simple -o /etc/qx-update/boot.conf 2>/dev/null || :
	inst /usr/lib/qx-update/qx-update-initramfs 2>/dev/null || inst /usr/bin/qx-update
	inst_multiple cat findfs grep mkdir modprobe mount sed sh sleep tail timeout tr umount
	# The root is mounted, and nothing of it runs yet.
	inst_hook pre-pivot 50 "$moddir/qx-update.sh"
}
