# What an agent does with tools, standard library only: each argument `TOOL JSON` is one call.
import json, os, sys, urllib.request


def ask(method, params):
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
    fields = {"content-type": "application/json", "accept": "application/json"}
    to = urllib.request.Request("http://127.0.0.1:3128/mcp", body, fields)
    try:
        answer = json.load(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(to))
    except (OSError, ValueError) as e:
        return {"error": {"message": "LOST " + type(e).__name__}}
    return answer


for one in sys.argv[1:]:
    name, _, given = one.partition(" ")
    if name == "wait":
        print("waiting", flush=True)
        sys.stdin.readline()
        continue
    if name == "leave":
        for folder in (".", os.environ["HOME"]):
            open(folder + "/of-the-agent", "w").write("not for programs")
        continue
    if name == "list":
        tools = ask("tools/list", {})["result"]["tools"]
        print("list", *[tool["name"] for tool in tools], flush=True)
        continue
    answer = ask("tools/call", {"name": name, "arguments": json.loads(given or "{}")})
    if "error" in answer:
        print(name, "REFUSED", answer["error"]["message"][:300], flush=True)
        continue
    text = answer["result"]["content"][0]["text"]
    mark = "FAILED" if answer["result"]["isError"] else "ok"
    print(name, mark, len(text), text[:3000], flush=True)
