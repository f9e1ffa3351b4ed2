"""Programs that want out of the sandbox, or the reward without the work.

Every program is verified against one test: no input, output `42`. Where an attack can only fail by an error, the
program prints `42` after the error and `escaped` after a success, so *right* says that it was contained. `{…}` is
filled with what lies outside: a folder that anyone may write to, ports, the address of a socket, process numbers.
"""

PREAMBLE = """
import ctypes, os, signal, socket, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)

def refused(attack):
    try:
        result = attack()
    except BaseException:
        result = None
    print(42 if result in (None, False, -1) else f"escaped: {result!r}"[:100])
    sys.stdout.flush()

def connected(family, kind, address, data=b"x"):
    with socket.socket(family, kind) as connection:
        connection.settimeout(1)
        connection.connect(address)
        return connection.send(data)

def wrote(path):
    with open(path, "a") as file:
        return file.write("hostile")

def read(path):
    with open(path, "rb") as file:
        return file.read()
"""

_REFUSED = {
    # the network
    "tcp": "connected(socket.AF_INET, socket.SOCK_STREAM, ('127.0.0.1', {port}))",
    "tcp to the world": "connected(socket.AF_INET, socket.SOCK_STREAM, ('1.1.1.1', 80))",
    "tcp over ipv6": "connected(socket.AF_INET6, socket.SOCK_STREAM, ('::1', {port}))",
    "udp": "connected(socket.AF_INET, socket.SOCK_DGRAM, ('127.0.0.1', {port}))",
    "dns": "socket.gethostbyname('example.com')",
    "unix socket": "connected(socket.AF_UNIX, socket.SOCK_STREAM, '{folder}/socket')",
    "abstract unix socket": "connected(socket.AF_UNIX, socket.SOCK_STREAM, '\\0{abstract}')",
    "netlink": "socket.socket(16, socket.SOCK_RAW)",
    "raw packets": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "a server of its own": "socket.create_server(('127.0.0.1', 0))",
    # reading
    "read a secret file": "read('{folder}/secret')",
    "read the password file": "read('/etc/shadow') or read('/etc/passwd')",
    "read the environment": "'{secret}' in str(dict(os.environ))",
    "read the parent's environment": "read('/proc/' + str(os.getppid()) + '/environ')",
    "read our memory": "read('/proc/{pid}/mem')",
    "read the tests": "any('{secret}'.encode() in read('/proc/self/fd/' + str(n)) for n in range(3, 32))",
    "open files that were left open": "[os.fstat(n) for n in range(3, 32)]",
    "read a disk": "read('/dev/sda') or read('/dev/vda') or read('/dev/mem')",
    "read the clipboard of the terminal": "read('/dev/tty')",
    "symlink to a secret": "os.symlink('{folder}/secret', '/tmp/link') or read('/tmp/link')",
    "hard link to a library": "os.link(os.__file__, '/tmp/link') or True",
    "climb out with dots": "read('/tmp/../../../../../..{folder}/secret')",
    # writing
    "write outside": "wrote('{folder}/written')",
    "append to a file outside": "wrote('{folder}/secret')",
    "delete a file outside": "os.remove('{folder}/secret') or True",
    "change the standard library": "wrote(os.__file__)",
    "delete the standard library": "os.remove(os.__file__) or True",
    "write to the root folder": "wrote('/written')",
    "write among the devices": "wrote('/dev/shm/written') or wrote('/dev/written')",
    "change its own program": "wrote('/program.py')",
    "make a device": "os.mknod('/tmp/disk', 0o60600, os.makedev(8, 0)) or True",
    # privileges
    "become root": "os.setuid(0) or True",
    "become somebody else": "os.setresuid(1, 1, 1) or True",
    "set-user-id file": "wrote('/tmp/x') and os.chown('/tmp/x', 0, 0) is None",
    "mount": "libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) or True",
    "remount the root writable": "libc.mount(b'none', b'/', None, 32 | 4096, None) or True",
    "unmount": "libc.umount2(b'/tmp', 2) or True",
    "chroot": "os.chroot('/tmp') or True",
    "new user namespace": "libc.unshare(0x10000000) or True",
    "new user namespace by clone": "libc.syscall({clone}, 0x10000011, 0, 0, 0, 0) >= 0",
    "trace its parent": "libc.ptrace(16, os.getppid(), 0, 0) == 0",
    "trace init": "libc.ptrace(16, 1, 0, 0) == 0",
    "load a kernel program": "libc.syscall({bpf}, 0, 0, 0) >= 0",
    "raise its limits": "__import__('resource').setrlimit(__import__('resource').RLIMIT_AS, (2**40, 2**40)) or True",
    "set the clock": "time.clock_settime(time.CLOCK_REALTIME, 0) or True",
    "set the host name": "socket.sethostname('hostile') or True",
    # other processes
    "kill us": "os.kill({pid}, 9) or True",
    "kill a bystander": "os.kill({bystander}, 9) or True",
    "kill everybody": "os.kill(-1, 9) or True",
    # memory that no limit counts
    "system v segment": "libc.shmget(0, 2**24, 0o1600) >= 0",
    "memory file": "os.memfd_create('x')",
    "large file": "os.truncate(os.open('/tmp/x', os.O_CREAT | os.O_RDWR), 2**30) or True",
    # another binary
    "start a shell": "subprocess.run(['/bin/sh', '-c', 'id'], check=True)",
    "start bubblewrap": "subprocess.run(['/usr/bin/bwrap', '--dev-bind', '/', '/', 'true'], check=True)",
}

PROGRAMS: dict[str, tuple[str, str]] = {  # name: verdict (or several that are fair), program
    **{name: ("right", f"refused(lambda: {attack})") for name, attack in _REFUSED.items()},
    # bombs
    "fork bomb": ("timed out", "while True:\n    try: os.fork()\n    except OSError: pass"),
    "fork bomb that forgets its parents": (
        "timed out",
        "while True:\n    try:\n        if os.fork(): os.setsid()\n    except OSError: pass",
    ),
    "thread bomb": ("wrong", "while True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"),
    "fill memory": ("wrong", "held = []\nwhile True: held.append(bytearray(2**24))"),
    "fill memory by mapping": ("wrong", "import mmap\nheld = []\nwhile True: held.append(mmap.mmap(-1, 2**26))"),
    "fill memory in children": (
        "right",
        "for _ in range(3):\n    if os.fork() == 0:\n        held = []\n"
        "        while True: held.append(bytearray(2**24))\n"
        "for _ in range(3): os.wait()\nprint(42)",
    ),
    "fill the disk": (
        "wrong",
        "for n in range(10**6):\n    with open(f'/tmp/{{n}}', 'wb') as f: f.write(bytes(2**20))",
    ),
    "fill the disk with one file": ("wrong", "f = open('/tmp/x', 'wb')\nwhile True: f.write(bytes(2**20))"),
    "open many files": ("wrong", "held = []\nwhile True: held.append(open('/dev/null'))"),
    "endless output": ("wrong", "while True: print('a' * 1000)"),
    "endless errors": ("timed out", "while True: sys.stderr.write('a' * 100000)"),
    "one huge line": ("wrong", "sys.stdout.write('4' * 10**8)"),
    "number bomb": ("timed out", "print(10**10**8 % 7, len(str(3**10**7)))\nprint(42)"),
    "deep recursion": ("wrong or timed out", "sys.setrecursionlimit(10**9)\ndef f(n): return f(n + 1) + 1\nf(0)"),
    "deep source": ("wrong", "eval('-' * 10**6 + '1')"),
    "regular expression without end": ("timed out", "import re\nre.match('(a+)+$', 'a' * 60 + 'b')\nprint(42)"),
    "crash of the interpreter": ("wrong", "ctypes.string_at(0)"),
    # time
    "sleep for ever": ("timed out", "time.sleep(10**6)"),
    "busy loop": ("timed out", "while True: pass"),
    "loop that ignores signals": (
        "timed out",
        "for n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
        "while True: pass",
    ),
    "sleep with closed outputs": (
        "timed out",
        "print(42)\nsys.stdout.flush()\nfor n in range(3): os.close(n)\ntime.sleep(60)",
    ),
    "wait for input": ("wrong", "print(input())"),
    "stop itself": ("timed out", "print(42, flush=True)\nos.kill(os.getpid(), signal.SIGSTOP)"),
    # what outlives its program
    "daemon": (
        "right",
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        for n in range(3): os.close(n)\n"
        "        time.sleep(600)\n    os._exit(0)\nprint(42)",
    ),
    "daemon that holds the outputs": ("right", "if os.fork() == 0:\n    os.setsid()\n    time.sleep(600)\nprint(42)"),
    "daemon that ignores signals": (
        "right",
        "if os.fork() == 0:\n    os.setsid()\n    for n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\n"
        "    time.sleep(600)\nprint(42)",
    ),
    "answer from a child": ("right", "if os.fork() == 0:\n    print(42)\nelse:\n    os.wait()"),
    # kill those around it
    "kill its parent": ("wrong", "os.kill(os.getppid(), 9)\nos.kill(1, 9)\ntime.sleep(0.2)"),
    "kill its group": ("wrong", "os.killpg(0, 9)"),
    # forged verdicts
    "says that it passed": ("wrong", "print('PASSED')\nprint('right', 1.0, 'OK', '1 of 1 tests passed')"),
    "writes a verdict": (
        "wrong",
        "import json\nfor n in range(3, 32):\n    try: os.write(n, json.dumps({{'exit-code': 0}}).encode())\n"
        "    except OSError: pass\nprint(json.dumps({{'score': 1.0, 'verdict': 'right'}}))",
    ),
    "exits well without an answer": ("wrong", "os._exit(0)"),
    "answers and fails": ("wrong", "print(42, flush=True)\nsys.exit(3)"),
    "answers and kills itself": ("wrong", "print(42, flush=True)\nos.kill(os.getpid(), 9)"),
    "answers in the errors": ("wrong", "print(42, file=sys.stderr)"),
    "answers twice": ("wrong", "print(42)\nprint(42)"),
    "answers everything": ("wrong", "for n in range(100): print(n)"),
    "answers and hides it": ("wrong", "print('\\x1b[2K\\r42\\b\\b41')"),
    "equals everything": ("wrong", "class Any(str):\n    __eq__ = lambda self, other: True\nprint(Any('x'))"),
    "takes the judge's module": (
        "wrong",
        "import builtins\nbuiltins.print = lambda *a: None\nsys.modules['json'] = None",
    ),
    "binary output": ("wrong", "sys.stdout.buffer.write(bytes(range(256)))"),
    "output that is no text": ("wrong", "sys.stdout.buffer.write(b'\\xff\\xfe42')"),
    "answer behind a zero byte": ("wrong", "sys.stdout.write('\\0' + '42')"),
    "closed output": ("wrong", "os.close(1)"),
}


def program(name: str, outside: dict[str, object]) -> str:
    return PREAMBLE + PROGRAMS[name][1].format(**outside)
