#!/bin/busybox sh
# First program of the guest, in the initramfs: loads what the root disk needs and goes there.
# Everything here is busybox.
export PATH=/bin
/bin/busybox --install -s /bin
mkdir -p /dev /disk
mount -t devtmpfs dev /dev

broken() {
    echo "@@ broken $*"
    reboot -f
}

for file in $(cat /modules/order); do
    insmod "/modules/$file" || broken "the module $file cannot be loaded"
done
waited=0
until [ -b /dev/vda ]; do
    [ $waited -lt 100 ] || broken "the root disk does not appear"
    waited=$((waited + 1))
    sleep 0.1
done
mount -t ext4 /dev/vda /disk || broken "the root disk cannot be mounted"
mount --move /dev /disk/dev
exec switch_root /disk /matrix/guest.sh
broken "the root disk has no /matrix/guest.sh"
