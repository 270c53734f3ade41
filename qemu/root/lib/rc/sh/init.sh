#!/bin/sh
# What OpenRC does before the sysinit runlevel. The initramfs has mounted /proc, /sys and /run, and devtmpfs is /dev: only
# OpenRC's own directory is left to make.
. "$RC_LIBEXECDIR/sh/functions.sh"
checkpath -d "$RC_SVCDIR"
checkpath -d -m 0775 /run/lock
echo sysinit >"$RC_SVCDIR/softlevel"
