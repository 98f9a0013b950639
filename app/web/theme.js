// Sets the theme before the page is painted. It is no module, because modules run after that.
try {
  const theme = localStorage.getItem("easel.theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch {
  // Without storage the system's theme stays.
}
