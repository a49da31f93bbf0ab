// Environments of serverless-postgres under Node: many in this one process, each with a client and a Runtime API of its own.
// Run by node.py, which says over a connection which of them begin and end; its end is the end of all of them.
import http from "node:http";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import net from "node:net";
import readline from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";

const ServerlessClient = createRequire(import.meta.url)("serverless-postgres");
const { env } = process;
const READ = "SELECT balance FROM accounts WHERE id = $1";
const WRITE = "UPDATE accounts SET balance = balance + 1 WHERE id = $1";
const config = {
  host: env.STORM_HOST,
  port: Number(env.STORM_PORT),
  database: env.STORM_DATABASE,
  user: env.STORM_USER,
  password: env.STORM_PASSWORD,
  ssl: env.STORM_CA_FILE ? { ca: readFileSync(env.STORM_CA_FILE, "utf8") } : false,
  // As its README recommends: the server's own setting, given and not asked for.
  maxConnections: Number(env.STORM_MAX_CONNECTIONS),
};
const all = new Map();

// The client throws what its connection reports between two statements; in an environment of its own that would end that
// environment, here the others have no part in it.
process.on("uncaughtException", (error) => console.error(error.message));

function ask(agent, address, method, path, body) {
  const [host, rest] = address.split(":");
  const [port, number] = rest.split("/");
  return new Promise((resolve, reject) => {
    const request = http.request(
      { agent, host, port, method, path: `/${number}/2018-06-01/runtime/invocation/${path}` },
      (response) => {
        const chunks = [];
        response.on("data", (chunk) => chunks.push(chunk));
        response.on("end", () => resolve({ headers: response.headers, body: Buffer.concat(chunks).toString() }));
      },
    );
    request.on("error", reject);
    request.end(body);
  });
}

async function handle(client, event) {
  await client.connect();
  try {
    await client.query("BEGIN");
    await client.query(READ, [event.account]);
    await sleep(event.service_s * 1000);
    await client.query(WRITE, [event.account]);
    await client.query("COMMIT");
  } catch (error) {
    await client.query("ROLLBACK").catch(() => {});
    throw error;
  }
  await client.clean();
  await sleep(event.outside_s * 1000);
}

async function live(address) {
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  const client = new ServerlessClient(config);
  all.set(address, { agent, client });
  while (all.has(address)) {
    const work = await ask(agent, address, "GET", "next");
    const id = work.headers["lambda-runtime-aws-request-id"];
    let failure = null;
    try {
      await handle(client, JSON.parse(work.body));
    } catch (error) {
      failure = error.code ?? error.name;
    }
    await ask(agent, address, "POST", `${id}/response`, JSON.stringify({ failure }));
  }
}

function end(address) {
  const one = all.get(address);
  all.delete(address);
  one?.client._client?.connection?.stream?.destroy();
  one?.agent.destroy();
}

const control = net.connect(Number(env.STORM_CONTROL), "127.0.0.1");
control.on("close", () => process.exit(0));
readline.createInterface({ input: control }).on("line", (line) => {
  const [what, address] = line.split(" ");
  if (what === "end") return end(address);
  live(address).catch((error) => {
    if (all.has(address)) console.error(error.stack);
    end(address);
  });
});
