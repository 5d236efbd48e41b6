// The connection to the server: asks for figures with the API key, and tries again when it is lost.
//
// The key is in the session storage of this tab, and in the header of requests, but never in an
// address. Nothing is asked for while the page is not visible.

const KEY = "tdpipe-api-key";
const FIRST_PAUSE_MS = 500, LONGEST_PAUSE_MS = 5000;
// The server sends a status at least once a second.
const SILENCE_MS = 6000;

export function follow(path, take, tell) {
  // Pass each JSON line of an endless response to `take`, and each problem to `tell`.
  run(async (signal, alive) => {
    const response = await ask(path, signal);
    tell("");
    for await (const line of linesOf(response.body)) {
      alive();
      take(JSON.parse(line));
    }
    throw new Error("The connection has ended; connecting again.");
  }, tell);
}

export function poll(paths, everyMs, take, tell) {
  // Pass the JSON of all paths to `take` again and again, and each problem to `tell`.
  run(async (signal, alive) => {
    for (;;) {
      const answers = await Promise.all(paths.map((path) => ask(path, signal)));
      take(...(await Promise.all(answers.map((answer) => answer.json()))));
      tell("");
      alive();
      await pause(everyMs, signal);
    }
  }, tell);
}

export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

class KeyNeeded extends Error {}

function run(work, tell) {
  const form = document.getElementById("key-form");
  const forget = document.getElementById("forget");
  let current = null;

  async function connect() {
    disconnect();
    const own = (current = { attempt: null });
    let pauseMs = FIRST_PAUSE_MS;
    while (current === own) {
      const attempt = (own.attempt = new AbortController());
      let timer = 0;
      const alive = () => {
        clearTimeout(timer);
        timer = setTimeout(() => attempt.abort(new Error("The server is silent.")), SILENCE_MS);
      };
      try {
        alive();
        await work(attempt.signal, () => {
          pauseMs = FIRST_PAUSE_MS;
          alive();
        });
      } catch (error) {
        if (current !== own) return;
        tell(problemOf(error));
        if (error instanceof KeyNeeded) return askForKey();
      } finally {
        clearTimeout(timer);
      }
      await pause(pauseMs);
      pauseMs = Math.min(2 * pauseMs, LONGEST_PAUSE_MS);
    }
  }

  function askForKey() {
    current = null;
    form.hidden = false;
    document.getElementById("key").focus();
  }

  function disconnect() {
    const old = current;
    current = null;
    old?.attempt.abort();
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const input = document.getElementById("key");
    sessionStorage.setItem(KEY, input.value.trim());
    input.value = "";
    form.hidden = true;
    forget.hidden = false;
    connect();
  });
  forget.addEventListener("click", () => {
    sessionStorage.removeItem(KEY);
    location.reload();
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) disconnect();
    else if (form.hidden) connect();
  });
  forget.hidden = !hasKey();
  if (!document.hidden) connect();
}

async function ask(path, signal) {
  const key = sessionStorage.getItem(KEY);
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const response = await fetch(path, { headers, signal, cache: "no-store" });
  if (response.status === 401) {
    throw new KeyNeeded(key ? "The server refuses this API key." : "The server needs an API key.");
  }
  if (!response.ok) throw new Error(await refusalOf(response));
  return response;
}

async function refusalOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answers ${response.status}.`;
  }
}

function problemOf(error) {
  // What fetch throws says nothing but that it failed.
  return error instanceof TypeError ? "The server does not answer; trying again." : error.message;
}

async function* linesOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    yield* lines;
  }
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

export function show(id, text) {
  const element = document.getElementById(id);
  if (element.textContent !== text) element.textContent = text;
}
