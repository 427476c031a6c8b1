// Server-sent events (WHATWG HTML, section 9.2) through fetch: EventSource cannot carry a token.

// Calls `tell(name, data)` for each message until the stream ends or `signal` is aborted. Throws a Refusal when the answer is none.
export async function follow(path, headers, signal, tell) {
  const answer = await ask(path, { ...headers, Accept: "text/event-stream" }, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const parts = rest.split("\n\n");
    rest = parts.pop();
    for (const part of parts) message(part, tell);
  }
}

export class Refusal extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

export async function ask(path, headers, signal) {
  const answer = await fetch(path, { headers, signal, cache: "no-store" });
  if (answer.ok) return answer;
  let text = answer.statusText;
  try {
    text = (await answer.json()).detail;
  } catch {
    // Not a problem document: the status has to do.
  }
  throw new Refusal(answer.status, text);
}

function message(part, tell) {
  let name = "message";
  const data = [];
  for (const line of part.split("\n")) {
    if (line.startsWith("event:")) name = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
  }
  if (data.length) tell(name, JSON.parse(data.join("\n")));
}
