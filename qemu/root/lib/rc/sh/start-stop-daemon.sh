# How OpenRC starts and stops what has no supervisor. Debian's package has no start-stop-daemon of OpenRC's own, so this
# does with busybox's what Alpine's does with OpenRC's: it knows the variables that this appliance's init scripts set,
# and leaves the same records behind.

ssd_start()
{
	local tries=250
	ebegin "Starting ${name:-$RC_SVCNAME}"
	# Not busybox's --background, which would send the program's words to /dev/null. The eval is what lets command_args
	# quote.
	rm -f "$pidfile"
	(
		exec </dev/null >>"${output_log:-/dev/null}" 2>>"${error_log:-/dev/null}"
		eval exec setsid start-stop-daemon -S -m -o -p "$pidfile" ${command_user:+-c} $command_user \
			-x "$command" -- $command_args
	) &
	until [ -s "$pidfile" ] || [ "$tries" = 0 ]; do
		tries=$((tries - 1))
		usleep 20000
	done
	[ -s "$pidfile" ]
	eend $? "Failed to start ${name:-$RC_SVCNAME}" || return 1
	service_set_value command "$command"
	service_set_value pidfile "$pidfile"
	# What makes `rc-service NAME status` say "crashed".
	mkdir -p "$RC_SVCDIR/daemons/$RC_SVCNAME"
	printf 'exec=%s\nname=\npidfile=%s\n' "$command" "$pidfile" >"$RC_SVCDIR/daemons/$RC_SVCNAME/001"
}

ssd_stop()
{
	local pid tries=50
	pidfile=$(service_get_value pidfile)
	ebegin "Stopping ${name:-$RC_SVCNAME}"
	pid=$(cat "$pidfile" 2>/dev/null)
	if [ -n "$pid" ] && kill -TERM "$pid" 2>/dev/null; then
		# Five seconds of grace, then there is no more asking.
		while kill -0 "$pid" 2>/dev/null; do
			tries=$((tries - 1))
			[ "$tries" = 0 ] && kill -KILL "$pid"
			usleep 100000
		done
	fi
	rm -f "$pidfile"
	rm -rf "$RC_SVCDIR/daemons/$RC_SVCNAME"
	eend 0
}

ssd_status()
{
	_status
}
