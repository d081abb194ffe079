# A server of tools on stdin and stdout, standard library only, that misbehaves when asked to.
import json, os, socket, sys, threading, time, urllib.request

note = None
calls = 0
TOOLS = {
    "pid": "Says who it is",
    "look": "Says what it sees",
    "keep": "Keeps a word",
    "told": "Tells the word that was kept",
    "fetch": "Fetches a URL",
    "die": "Ends",
    "flood": "Writes without end, in lines",
    "line": "Writes without end, in one line",
    "nonsense": "Writes nonsense before its answer",
    "mumble": "Writes to standard error without end",
    "hang": "Never answers",
    "big": "Answers at length",
}


def send(value):
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def attempt(work):
    try:
        return "YES " + str(work())
    except Exception as e:
        return type(e).__name__


def look(secret, port):
    there = lambda path: sorted(os.listdir(path))
    dial = lambda *place: socket.create_connection(place, 2).getpeername()
    return {
        "env": sorted(os.environ),
        "root": there("/"),
        "mnt": there("/mnt"),
        "here": there("."),
        "home": there(os.environ["HOME"]),
        "door": there("/run/nanoclaw"),
        "pids": len([p for p in there("/proc") if p.isdigit()]),
        "secret": attempt(lambda: open(secret).read()),
        "write": attempt(lambda: open("/mnt/srv/x", "w").write("x")),
        "host": attempt(lambda: dial("127.0.0.1", port)),
        "net": attempt(lambda: dial("1.1.1.1", 53)),
        "proxy": attempt(lambda: dial("127.0.0.1", 3128)),
        "name": attempt(lambda: socket.getaddrinfo("example.com", 80)),
        "uid": os.getuid(),
    }


def call(name, given):
    global note, calls
    calls += 1
    if name == "pid":
        # Processes have the same numbers in every sandbox; this differs.
        return "pid %s %s" % (os.stat("/proc/self/ns/pid").st_ino, calls)
    if name == "look":
        return json.dumps(look(given["secret"], given["port"]))
    if name == "keep":
        note = given["word"]
        open("note", "w").write(note)
        return "kept"
    if name == "told":
        return "%s %s" % (note, os.path.exists("note"))
    if name == "fetch":
        # Custom exempts this machine's names from proxies, and here they are what is asked for.
        os.environ.pop("NO_PROXY", None)
        os.environ.pop("no_proxy", None)
        try:
            return urllib.request.urlopen(given["url"], timeout=10).read().decode()
        except urllib.error.HTTPError as e:
            return "%s %s" % (e.code, e.read().decode())
        except OSError as e:
            return repr(e)
    if name == "die":
        sys.stderr.write("ended as it was asked to\n")
        sys.stderr.flush()
        os._exit(3)
    if name == "flood":
        while True:
            send({"jsonrpc": "2.0", "method": "notifications/message", "params": ["x" * 999]})
    if name == "line":
        while True:
            sys.stdout.write("x" * 65536)
    if name == "nonsense":
        sys.stdout.write("no json\n\n[]\n{}\n\x00\xff\n")
        send({"jsonrpc": "2.0", "id": 99999, "result": {}})
    if name == "mumble":
        def mumble():
            while True:
                os.write(2, b"mumble " * 999)
        threading.Thread(target=mumble, daemon=True).start()
        time.sleep(0.5)
    if name == "hang":
        time.sleep(300)
    if name == "big":
        return "x" * (3 << 20)
    return "done"


for line in sys.stdin:
    asked = json.loads(line)
    method, params = asked["method"], asked.get("params", {})
    if "id" not in asked:
        continue
    if method == "initialize":
        result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}},
                  "serverInfo": {"name": "lab", "version": "1"}}
    elif method == "tools/list":
        result = {"tools": [{"name": n, "description": d, "inputSchema": {"type": "object"}}
                            for n, d in TOOLS.items()]}
    elif method == "tools/call":
        text = call(params["name"], params.get("arguments", {}))
        result = {"content": [{"type": "text", "text": text}], "isError": False}
    else:
        send({"jsonrpc": "2.0", "id": asked["id"], "error": {"code": -32601, "message": "unknown"}})
        continue
    send({"jsonrpc": "2.0", "id": asked["id"], "result": result})
