#!/bin/sh
/usr/lib/qx-update/qx-recover "$NEWROOT"
