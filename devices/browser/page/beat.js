// Tells the server every few seconds that the page is alive, also while the page's own thread is busy with a network.
self.onmessage = ({ data: { url, runner, everyMs } }) => {
  const beat = () =>
    fetch(url, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ runner, state: "beat" }),
    }).catch(() => {}); // the page's own requests tell of a lost server
  beat();
  setInterval(beat, everyMs);
};
