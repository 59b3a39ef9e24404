"use strict";
// The token comes behind the # of the address, which browsers send to nobody, and stays in this tab.
if (location.hash.startsWith("#token=")) {
  sessionStorage.setItem("token", location.hash.slice("#token=".length));
  history.replaceState(null, "", "/");
}
const notice = document.getElementById("notice");
const live = document.getElementById("live");
let seen = false;

async function look() {
  let wait = document.hidden ? 10000 : 1000;
  try {
    const token = sessionStorage.getItem("token") ?? "";
    const answer = await fetch("/live", { headers: { Authorization: "Bearer " + token }, cache: "no-store" });
    if (answer.ok) {
      live.innerHTML = await answer.text();
      document.title = live.querySelector("#round").textContent + " · " + live.querySelector("h1").textContent;
      notice.textContent = "";
      seen = true;
    } else if (answer.status === 401) {
      notice.textContent = "This page needs the token that the server printed: open the address with #token=… behind it.";
      wait = 10000;
    } else {
      notice.textContent = "The server answers " + answer.status + ".";
    }
  } catch {
    notice.textContent = "The server does not answer" + (seen ? "; this is what it said last." : ".");
  }
  setTimeout(look, wait);
}
look();
